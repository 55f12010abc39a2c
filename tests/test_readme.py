"""README.md, the pages of docs/ and the Makefile, as a new user follows them from the top."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gam_scale.model.config import ModelConfig
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS
from gam_scale.strict import from_dict

ROOT = Path(__file__).resolve().parents[1]
OURS = ("runs/", "data/", "docs/language", "accept")
OUTPUTS = re.compile(r"(?:--out|--report|log\.run_dir)[ =](\S+)")


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


def commands(page: Path) -> list[str]:
    """What a page has a user type, one command after another, continued lines joined."""
    lines = "".join(COMMANDS.findall(page.read_text())).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def sets_read(words: list[str]) -> set[str]:
    """Prepared sets that a command reads: of its config or sweep file, or named by itself."""
    options = dict(zip(words, words[1:], strict=False))
    found = {options[flag] for flag in ("--wikitext2", "--tinystories") if flag in options}
    overridden = [word for word in words if word.startswith("data.sets=")]
    if overridden:
        return found | {entry["path"] for entry in json.loads(overridden[0].partition("=")[2])}
    if "--config" in options:
        config = json.loads((ROOT / options["--config"]).read_text())
        found |= {entry["path"] for entry in config["data"]["sets"]}
    if "--sweep" in options and "tools/sweep.py" in words:
        found.add(json.loads((ROOT / options["--sweep"]).read_text())["data"])
    return found


def sets_made(page: Path) -> set[str]:
    """Prepared sets that a page's commands make."""
    found = [shlex.split(command, comments=True) for command in commands(page)]
    return {w[w.index("--out") + 1] for w in found if "tools/prepare_data.py" in w and "--out" in w}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_set_is_made_on_the_page_that_reads_it_or_on_one_it_links_to(page):
    linked = [page.parent / name for name in re.findall(r"\]\(([\w/]+\.md)", page.read_text())]
    made = {"data/quickstart", *sets_made(page)}.union(*map(sets_made, linked))
    for command in commands(page):
        missing = sets_read(shlex.split(command, comments=True)) - made
        assert not missing, f"{page.name} reads a set that nothing makes: {missing} in {command}"


def test_what_its_commands_write_lies_under_runs_or_data():
    typed = [command for page in PAGES for command in commands(page)]
    written = [path for command in typed for path in OUTPUTS.findall(command)]
    stray = [path for path in written if not path.startswith(OURS)]
    assert len(written) > 20 and not stray, f"written beside the project's files: {stray}"


def test_every_tool_that_they_name_is_there():
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"\b(?:tools|slurm)/\w+\.\w+", text))
    lost = [path for path in named if not (ROOT / path).exists()]
    assert len(named) > 15 and not lost, f"files are named that are not there: {lost}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


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


def test_the_example_of_other_parts_is_a_model():
    (text,) = re.findall(
        r"^ {4}(\"layers\": .*?)\n\n", (ROOT / "docs" / "long_context.md").read_text(), re.M | re.S
    )
    model = from_dict(ModelConfig, json.loads(f"{{{text}}}"))
    model.check()
    assert not model.tied_head and model.stack()[1].window == 1024


def test_help_lists_kinds_without_settings():
    command = [sys.executable, "tools/pretrain.py", "--help-config"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for kind in [f"{r.noun} {k}" for r in (MIXERS, FEED_FORWARDS, NORMS) for k in r]:
        assert re.search(rf"^{kind}(:|$)", said, re.M), kind
