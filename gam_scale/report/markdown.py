"""Text that Markdown is to show as it is."""

import re


def plain(text: str) -> str:
    """``text`` whose stars, underscores and angle brackets are read as such."""
    return re.sub(r"([*_<])", r"\\\1", text)


def code(text: str) -> str:
    """A block of ``text``, fenced by more backticks than it has in a row."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
