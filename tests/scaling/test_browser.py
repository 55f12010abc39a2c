"""The report as a real browser shows it: without network, on a phone, light and dark."""

import re

import pytest
from browser import Browser
from scaling.test_report import folder  # noqa: F401  (a fixture)

PHONE, DESK = (390, 844), (1280, 900)

OVERFLOW = """
[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  const scrolls = e.closest(".wide, pre") && e !== e.closest(".wide, pre");
  return box.width && box.right > innerWidth + 1 && !scrolls;
}).map(e => e.tagName + "." + e.className.baseVal + "|" + e.className).slice(0, 5)
"""
# Text that is drawn outside its own figure is cut off in print and by readers.
OUTSIDE = """
[...document.querySelectorAll("figure")].flatMap(figure => {
  const edge = figure.getBoundingClientRect();
  return [...figure.querySelectorAll("svg text")].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < edge.left - 12 || box.right > edge.right + 12);
  }).map(text => figure.innerText.split("\\n")[0] + ": " + text.textContent);
})
"""
# Tables with intervals are seen whole, without scrolling, on a desk and on a phone.
SCROLLED = """
[...document.querySelectorAll(".stacked")].filter(e => e.scrollWidth > e.clientWidth + 1)
  .map(e => e.parentElement.innerText.split("\\n")[0])
"""
LUMINANCE = """
(name => {
  const parts = getComputedStyle(document.body)[name].match(/[0-9.]+/g).slice(0, 3).map(Number);
  return (parts[0] * 0.2126 + parts[1] * 0.7152 + parts[2] * 0.0722) / 255;
})
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_page_fits_and_needs_nothing(folder, browser, size, scheme, tmp_path):  # noqa: F811
    page = folder / "report.html"
    browser.open(page, *size, scheme)
    assert browser.requests == [page.absolute().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= size[0]
    assert browser.value(OVERFLOW) == []
    assert browser.value(OUTSIDE) == []
    assert browser.value(SCROLLED) == []
    shown = "e => e.getBoundingClientRect().width"
    seen = f"[...document.querySelectorAll('figure > svg')].filter({shown})"
    assert browser.value(f"{seen}.length") == browser.value(
        "document.querySelectorAll('figure').length"
    )
    narrow = browser.value(
        f"{seen}.filter(e => e.parentElement.className == 'pair')"
        ".every(e => e.classList[0].endsWith('-narrow'))"
    )
    assert narrow == (size == PHONE)
    paper = browser.value(f"{LUMINANCE}('backgroundColor')")
    ink = browser.value(f"{LUMINANCE}('color')")
    assert (paper > 0.9 and ink < 0.2) if scheme == "light" else (paper < 0.15 and ink > 0.8)
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_prints(folder, browser, tmp_path):  # noqa: F811
    browser.open(folder / "report.html", *DESK, "dark")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.value(f"{LUMINANCE}('backgroundColor')") > 0.9  # never dark on paper
    colours = "[...document.querySelectorAll('.key path')].map(e => getComputedStyle(e).stroke)"
    assert len(set(browser.value(colours))) > 2, "keys on paper have no colours of their own"
    text = browser.value("document.body.innerText")
    for title in ("Training curves", "Sensitivity to the learning rate", "Loss by position"):
        assert title in text
    assert re.search(
        r"gam of 10k\n?.*2 times the learning rate, the last tried, is better by 0\.5", text
    )
