"""Plots on a page, and the parts of a page as Markdown."""

from collections.abc import Sequence

from gam_scale.evaluate import page
from gam_scale.evaluate.table import Table
from gam_scale.scaling.plots import Plot


def figure(plot: Plot) -> str:
    """A figure in the page's colours, one drawing for wide windows and one for phones."""
    keys = plot.keys if len(plot.keys) > 1 else ()
    return page.figure(plot.title, plot.caption, keys, plot.svg(), plot.svg(narrow=True))


def markdown_sentences(title: str, said: Sequence[str]) -> str:
    """:func:`gam_scale.evaluate.page.sentences` in Markdown."""
    return f"## {title}\n\n" + "\n".join(f"* {plain(s)}" for s in said)


def markdown_figure(plot: Plot) -> str:
    """A figure that is a .png file beside the text."""
    keys = f" ({', '.join(name for _, name in plot.keys)})" if len(plot.keys) > 1 else ""
    return f"## {plot.title}\n\n![{plot.title}]({plot.name}.png)\n\n{plot.caption}{keys}"


def markdown_table(t: Table) -> str:
    """:func:`gam_scale.evaluate.page.table` in Markdown."""
    lines = [t.header, ["---", *["--:"] * (len(t.header) - 1)], *t.rows]
    body = "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
    return f"## {t.title}\n\n{body}" + (f"\n\n{plain(t.note)}" if t.note else "")


def plain(text: str) -> str:
    """Text whose stars and underscores Markdown is not to read as emphasis."""
    return text.replace("*", "\\*").replace("_", "\\_")
