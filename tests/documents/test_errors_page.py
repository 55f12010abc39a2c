"""docs/faq.md: the code can print every message there."""

import ast
import re

import pytest
from pages import ROOT, blocks

PAGE = ROOT / "docs" / "faq.md"
SOURCES = [*(ROOT / "gam_scale").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
FIXED = 0.25
"""Share of a message that must be constant in the code: a pattern of values alone fits all."""

VALUES = ("%s", "%d")
"""What stands for a value in a text that the log formats."""

Sentence = tuple[int, re.Pattern[str]]
"""The number of constant characters of a text in the code, and a pattern with open values."""


Constants = dict[str, str]
"""The text of each module's constants, by their names in capitals."""


def patterns() -> list[Sentence]:
    """Return every text of the code with at least 10 constant characters."""
    trees = [ast.parse(path.read_text()) for path in SOURCES]
    constants = constants_of(trees)
    found = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        pieces = pieces_of(node, constants)
        if (own := sum(len(piece) for piece in pieces if piece)) >= 10:
            said = "".join(".*" if piece is None else re.escape(piece) for piece in pieces)
            found.append((own, re.compile(said, re.S)))
    return found


def constants_of(trees: list[ast.Module]) -> Constants:
    """Return the constants of all modules that are texts, without names that stand for several."""
    found: dict[str, set[str]] = {}
    for node in (node for tree in trees for node in tree.body):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [name.id for name in node.targets if isinstance(name, ast.Name)]
            for name in filter(str.isupper, names):
                found.setdefault(name, set()).add(str(node.value.value))
    return {name: texts.pop() for name, texts in found.items() if len(texts) == 1}


def pieces_of(node: ast.AST, constants: Constants) -> list[str | None]:
    """Return a string's constant parts, and None for each value; empty if ``node`` is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [None if piece in VALUES else piece for piece in re.split("(%[sd])", node.value)]
    if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name):
        named = node.format_spec is None and node.conversion == -1 and node.value.id in constants
        return [constants[node.value.id]] if named else []
    if isinstance(node, ast.JoinedStr):
        return [piece for part in node.values for piece in pieces_of(part, constants) or [None]]
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
    stale = "a: no file matches; expected .txt, a folder of them, a glob, hf:NAME or python-stdlib"
    assert len(MESSAGES) > 25
    assert not is_said(wrong, sentences) and not is_said(stale, sentences)
