"""Escape text so that Markdown shows it unchanged."""

import re

_MARKS = re.compile(r"([\\`*_<$~|]|&(?=#?\w+;)|\](?=[(\[:]))")
"""Inline syntax: emphasis, code, markup, formulas, table cells, entities and links."""
_START = re.compile(r"^(#+(?= )|[-+](?= )|\d+[.)](?= )|>)")
"""The start of a line that makes it a heading, a list item or a quotation."""


def plain(text: str) -> str:
    """Return ``text`` on one line, escaped so that Markdown shows every character."""
    line = _MARKS.sub(r"\\\1", one_space(text))
    return _START.sub(lambda start: start[1][:-1] + "\\" + start[1][-1], line)


def one_space(text: str) -> str:
    """Return ``text`` with one space for each run of whitespace; no-break spaces stay."""
    return re.sub(r"[^\S\u00a0]+", " ", text).strip()


def picture(title: str, file: str) -> str:
    """Return the Markdown of an image, with its title as the alternative text."""
    alternative = re.sub(r"(?<!\\)([\[\]])", r"\\\1", plain(title))
    return f"![{alternative}]({file})"


def code(text: str) -> str:
    """Return ``text`` as a code block, whose fence is longer than any run of backticks in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
