"""A page with every kind of part as a real browser shows it, on a desk and on a phone."""

import pytest
from report.test_page import page  # noqa: F401  (a fixture)
from scaling.test_browser import DESK, OVERFLOW, PHONE, browser  # noqa: F401  (a fixture)

# The number of drawings that are shown (have a width), for each figure.
SEEN = """
[...document.querySelectorAll("figure")].map(figure =>
  [...figure.querySelectorAll(":scope > svg")].filter(e => e.getBoundingClientRect().width).length)
"""


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_each_figure_is_seen_once_and_nothing_is_cut_off(page, browser, tmp_path, size):  # noqa: F811
    path = tmp_path / "page.html"
    path.write_text(page.html())
    browser.open(path, *size)
    assert browser.value(SEEN) == [1, 1, 0], "a figure is hidden, or seen twice"
    assert browser.value(OVERFLOW) == []
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    assert browser.requests == [path.absolute().as_uri()]
