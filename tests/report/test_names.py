"""Names of every kind are shown as they are, on pages, in Markdown and in drawings."""

import re
import warnings
from xml.etree import ElementTree

import pytest

from gam_scale.report.drawn import MAX_CHARACTERS, drawable
from gam_scale.report.figure import Figure
from gam_scale.report.lines import Series, heat_map, line_figure
from gam_scale.report.markdown import picture, plain
from gam_scale.report.page import Page
from gam_scale.report.table import Table

NAMES = [
    "$x_1$",
    "$\\bad",
    "a\nb\r\nc",
    "x" * 400,
    "\u6587\u5b57 \U0001f600",
    "\x1b[31m\x07",
    "<script>alert(1)</script>",
    "[a](http://b) `c` ![d] | e &amp; ~~f~~",
    "# g",
    "1. h",
    "-- --> ]]>",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_line_that_means_nothing(name) -> None:
    """Without its escapes the text is the name, and each character with a meaning is escaped."""
    text = plain(name)
    assert "\n" not in text and re.sub(r"\\([^a-z0-9 ])", r"\1", text) == " ".join(name.split())
    unescaped = re.sub(r"\\[^a-z0-9 ]", "", text)
    assert not re.search(r"[$<`*_~|]|\]\(|^#|^\d+[.] |&amp;", unescaped)
    assert len(re.findall(r"(?<!\\)\]", picture(name, "f.png"))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_without_a_word(name) -> None:
    """A formula would raise an error, and a character that the font lacks would warn."""
    line = line_figure(name[:3] and "f", name, name, [Series(name, [1], [1.0])], (300, 200))
    grid = heat_map("g", name, "", [[0.5]], [name], [name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (line, grid):
            assert figure.file("png") and figure.svg()
            ElementTree.fromstring(figure.file("svg"))
    page = Page(name, name, [line, grid, Table(name, ["", name], [[name, name]])]).html()
    assert "<script" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg.replace("xlink:", ""))


def test_long_names_are_drawn_short_and_differ() -> None:
    names = [drawable("x" * 400 + end) for end in ("first", "second")]
    assert len(set(names)) == 2 and all(len(name) == MAX_CHARACTERS for name in names)
    assert drawable("a\u00b1\u6587") == "a\u00b1\\u6587"


def test_lines_differ_by_more_than_colour() -> None:
    """This holds for any number of lines, in a file and on a page."""
    looks: dict[bool, set[str]] = {False: set(), True: set()}
    for marked in looks:
        keys = tuple((i, str(i)) for i in range(20))
        figure = Figure("f", "t", "c", lambda *_: None, keys, marked=marked)
        for i, (drawing, name) in enumerate(figure.swatches()):
            assert f"--line{i % 8})" in drawing and name == str(i)
            looks[marked].add(re.sub(r"var\(--line\d\)", "", drawing))
    assert len(looks[True]) >= 9 and len(looks[False]) >= 5
