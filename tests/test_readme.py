"""README.md and the Makefile, as a new user follows them from the top; see also documents/."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from gam_scale import __version__
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_is_of_this_version_and_names_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["cff-version"] and cited["authors"]
    assert "2509.00605" in cited["references"][0]["url"]


def test_readme_is_short_and_links_every_page():
    text = (ROOT / "README.md").read_text()
    lost = [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text]
    assert len(text.splitlines()) < 250 and not lost, f"README.md links no {lost}"


def test_lint_leaves_alone_what_users_make(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("gam_scale", "mine-hf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text("import os\nx=( 1 )\n")
    lint = ["make", "lint", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run(lint, cwd=tmp_path, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "mine-hf" not in said, f"a user's own file is linted: {said}"
    assert done.returncode and "gam_scale" in said, f"our own files are not linted: {said}"


def test_the_install_says_what_comes_next(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "install", "PYTHON=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ". .venv/bin/activate" in done.stdout, f"no next step after the install: {done.stdout}"


def test_help_lists_kinds_without_settings():
    command = [sys.executable, "tools/pretrain.py", "--help-config"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for kind in [f"{r.noun} {k}" for r in (MIXERS, FEED_FORWARDS, NORMS) for k in r]:
        assert re.search(rf"^{kind}(:|$)", said, re.M), kind
