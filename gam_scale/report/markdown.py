"""Text that Markdown is to show as it is."""

import re

_MARKS = re.compile(r"([\\`*_<$~|]|&(?=#?\w+;)|\](?=[(\[:]))")
"""What means something within a line: emphasis, code, markup, formulas, cells, entities, links."""
_START = re.compile(r"^(#+(?= )|[-+](?= )|\d+[.)](?= )|>)")
"""What makes a line a heading, a list or a quotation."""


def plain(text: str) -> str:
    """``text``, on one line, whose every character is read as such."""
    line = _MARKS.sub(r"\\\1", one_space(text))
    return _START.sub(lambda start: start[1][:-1] + "\\" + start[1][-1], line)


def one_space(text: str) -> str:
    """``text`` with one space for each break and run of spaces; those that hold words stay."""
    return re.sub(r"[^\S\u00a0]+", " ", text).strip()


def picture(title: str, file: str) -> str:
    """A file's picture, told by its title to who cannot see it."""
    alternative = re.sub(r"(?<!\\)([\[\]])", r"\\\1", plain(title))
    return f"![{alternative}]({file})"


def code(text: str) -> str:
    """A block of ``text``, fenced by more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
