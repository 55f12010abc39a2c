"""The site as `make docs` builds it: every link leads somewhere, no other host is asked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browser import Browser
from pages import FENCED, PAGES, ROOT

import gam_scale
from docs.site.settings_page import PAGE, page

pytest.importorskip("mkdocs", reason="the extra docs is not installed")
pytest.importorskip("material", reason="the extra docs is not installed")

REMOTE = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?https?://[^">\s]+')
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build the site into ``folder``, in a process of its own."""
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(config), "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, f"make docs fails:\n{done.stdout}{done.stderr}"
    return folder


def test_all_pages_are_in_it(site):
    wanted = [p for p in PAGES if p.parent == ROOT / "docs"] + [*(ROOT / "docs").rglob("report.md")]
    pages = [p.relative_to(ROOT / "docs").with_suffix(".html") for p in wanted]
    assert [p for p in pages if not (site / p).exists()] == []
    navigation = (site / "index.html").read_text()
    assert [p for p in pages if f'href="{p}"' not in navigation] == []


def test_the_notebook_is_a_page(site):
    text = (site / "quickstart_notebook.html").read_text()
    assert "load_trained" in text and "A text of our own" in text


def test_no_page_asks_another_host(site):
    found = {p.name: REMOTE.findall(p.read_text()) for p in site.rglob("*.html")}
    assert len(found) > 20 and not {name: of for name, of in found.items() if of}


def test_python_api_has_every_public_name(site):
    text = (site / "api.html").read_text()
    assert [name for name in gam_scale.__all__ if name != "__version__" and name not in text] == []
    assert gam_scale.Layer.__doc__.splitlines()[0][:40] in text, "names without docstrings"


@pytest.mark.parametrize(
    ("text", "said"),
    [("[a](none.md)", "none.md"), ("[a](index.md#none)", "#none"), ("", "stray.md")],
)
def test_a_dead_link_and_a_page_that_the_navigation_lacks_fail(tmp_path, text, said):
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings |= {"docs_dir": str(tmp_path / "docs"), "hooks": [], "nav": [{"Home": "index.md"}]}
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    if not text:
        (tmp_path / "docs" / "stray.md").write_text("# Stray\n")
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode and said in done.stdout + done.stderr


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site name them."""
    text = FENCED.sub("", path.read_text())
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)
def test_links_lead_somewhere_in_the_repository_too(path):
    for target in LINK.findall(FENCED.sub("", path.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{path.name} links to {target}, which is not there"
        known = not anchor or anchor in anchors(there)
        assert known, f"{path.name} links to {target}; {there.name} has {sorted(anchors(there))}"


def test_the_page_of_settings_is_that_of_the_code():
    assert PAGE.read_text() == page(), "stale; run python docs/site/settings_page.py"


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_a_screen(site, tmp_path, width):
    with Browser(tmp_path / "profile") as browser:
        for name in ("index", "configs", "api", "cluster"):
            browser.open(site / f"{name}.html", width, 900)
            assert browser.value("document.documentElement.scrollWidth") <= width, name
            assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
