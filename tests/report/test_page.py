"""Pages with every kind of part are whole, escaped, and the same in HTML and in Markdown."""

import re
from xml.etree import ElementTree

import pytest

from gam_scale.report.figure import Figure
from gam_scale.report.lines import Series, heat_map, line_figure
from gam_scale.report.numbers import duration, metric, plus_minus, span
from gam_scale.report.page import Beside, Folded, KeyFigures, Note, Page, Quotes, Sentences
from gam_scale.report.table import Table

EVIL = "<script>alert('&')</script>"
SHOWN = "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"


def lines(name: str, *series: Series, **options: object) -> Figure:
    return line_figure(name, f"{name} {EVIL}", EVIL, series, (300, 200), **options)


@pytest.fixture
def page() -> Page:
    """A page with every kind of part, each of whose texts would be markup if not escaped."""
    figures = [
        lines("first", Series(EVIL, [1, 2], [3.0, 4.0]), narrow_size=(200, 150)),
        heat_map("second", EVIL, EVIL, [[0.5]], [EVIL], [EVIL]),
    ]
    table = Table(EVIL, [EVIL, "b|c"], [[EVIL, "1|2"]], note=EVIL)
    parts = [
        KeyFigures([(EVIL, EVIL, EVIL)]),
        Sentences(EVIL, [EVIL, "a * b_c"]),
        Note(EVIL),
        Quotes(EVIL, [("", EVIL), (EVIL, "a ``` fence")]),
        Folded(EVIL, EVIL),
        Folded(EVIL, table),
        table,
        Table(EVIL, [], [[EVIL, "2"]]),
        Beside(figures),
        lines("empty", Series("nothing", [], [])),
    ]
    return Page(EVIL, EVIL, parts)


def test_no_text_becomes_markup(page) -> None:
    html = page.html()
    assert "<script" not in html
    for part in page.parts:
        assert SHOWN in Page("title", "subject", [part]).html(), f"{part} is not shown"
    for svg in re.findall(r"<svg.*?</svg>", html, re.S):
        ElementTree.fromstring(svg.replace("xlink:", ""))
    outside_of_code = re.sub(r"^(`{3,})\n.*?\n\1$", "", page.markdown(), flags=re.S | re.M)
    assert not re.search(r"(?<!\\)<", outside_of_code)


def test_markdown_says_what_the_page_says(page) -> None:
    text = page.markdown()
    assert "a \\* b\\_c" in text and "| 1\\|2 |" in text
    assert "````\na ``` fence\n````" in text, "a fence inside of a text ends its block"
    assert "](first.png)" in text and "](second.png)" in text and "empty.png" not in text
    assert text.count("There are no values to draw.") == 1 == page.html().count("no values to draw")


def test_files_are_those_that_markdown_names(page) -> None:
    files = page.files("png", "svg", "pdf")
    names = {f"{name}.{form}" for name in ("first", "second") for form in ("png", "svg", "pdf")}
    assert set(files) == names | {"report.html", "report.md"}
    assert files["first.png"].startswith(b"\x89PNG") and files["first.pdf"].startswith(b"%PDF")
    assert page.files("svg")["first.svg"] == files["first.svg"], "a figure has other bytes again"


def test_a_name_with_dollars_is_no_formula() -> None:
    name = "$\\bad$"  # as a formula, it would raise
    figure = line_figure("x", name, "", [Series(name, [1], [1.0])], (300, 200))
    for form in ("svg", "png"):
        assert figure.file(form)


def test_the_y_axis_of_values_over_decades_is_logarithmic() -> None:
    wide, narrow = ([10.0**i for i in range(n)] for n in (5, 2))
    for y, log in ((wide, True), (narrow, False)):
        svg = lines("log", Series("", range(5, 5 + len(y)), y), from_zero=True, may_log=True).svg()
        assert (">0<" in svg) != log, "a logarithmic axis has no 0, and one from zero has"


def test_colours_are_the_places_or_those_given() -> None:
    figure = lines("colours", Series("a", [1], [1.0]), Series("", [1], [2.0], colour=7))
    assert figure.keys == ((0, "a"),)
    assert "var(--line0)" in figure.svg() and "var(--line7)" in figure.svg()


def test_a_table_is_aligned_on_a_terminal_and_loses_its_empty_columns() -> None:
    table = Table("T", ["a", "none", "b"], [["long", "", "1"], ["x", "", "100"]], "note")
    assert str(table.without_empty_columns()) == "T\na       b\nlong    1\nx     100\nnote"
    assert str(Table("", [], [["a", "1"]])) == "a  1"


def test_numbers() -> None:
    assert [metric(x, "FLOP") for x in (135.6e6, 2e9, 12)] == [
        "136\u00a0MFLOP",
        "2\u00a0GFLOP",
        "12\u00a0FLOP",
    ]
    assert [duration(s) for s in (40, 720, 9000)] == ["40\u00a0s", "12\u00a0min", "2.5\u00a0h"]
    assert [span(1, 1), span(1024, 2047)] == ["1", "1,024-2,047"]
    assert [plus_minus(1.5, 0.7), plus_minus(3, None)] == ["1.5 ± 0.7", "3.0"]
    assert plus_minus(0.5, 0.25, "{:+.2f}".format) == "+0.50 ± 0.25"
