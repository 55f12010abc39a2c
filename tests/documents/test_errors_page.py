"""docs/faq.md: the code can print every message there."""

import ast
import re

import pytest
from pages import ROOT, blocks

PAGE = ROOT / "docs" / "faq.md"
SOURCES = [*(ROOT / "gam_scale").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
FIXED = 0.25
"""Share of a message that must be constant in the code: a pattern of values alone fits all."""

Sentence = tuple[int, re.Pattern[str]]
"""The number of constant characters of a text in the code, and a pattern with open values."""


def patterns() -> list[Sentence]:
    """Return every text of the code with at least 10 constant characters."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            pieces = pieces_of(node)
            if (own := sum(len(piece) for piece in pieces if piece)) >= 10:
                said = "".join(".*" if piece is None else re.escape(piece) for piece in pieces)
                found.append((own, re.compile(said, re.S)))
    return found


def pieces_of(node: ast.AST) -> list[str | None]:
    """Return a string's constant parts, and None for each value; empty if ``node`` is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return [piece for part in node.values for piece in pieces_of(part) or [None]]
    return []


@pytest.fixture(scope="module")
def sentences():
    """All patterns, compiled once."""
    return patterns()


def is_said(message: str, sentences: list[Sentence]) -> bool:
    """Return whether some text of the code gives the message."""
    least = FIXED * len(message)
    return any(own >= least and pattern.fullmatch(message) for own, pattern in sentences)


MESSAGES = [line for text in blocks(PAGE, "text") for line in text.splitlines()]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_the_code_says_it(message, sentences):
    assert message.startswith("error: ")
    forms = (
        message,
        message.removeprefix("error: "),
    )  # tools/bootstrap.py, without cli, prints all of it
    assert any(is_said(said, sentences) for said in forms), f"no code says: {message}"


def test_what_no_code_says_is_found(sentences):
    wrong = "data.sets is empty; expected at least one made by tools/prepare.py"
    assert len(MESSAGES) > 25 and not is_said(wrong, sentences)
