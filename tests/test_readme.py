"""README.md and the Makefile, as a new user follows them from the top."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from gam_scale.model.config import ModelConfig
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS
from gam_scale.strict import from_dict

ROOT = Path(__file__).resolve().parents[1]
OUTPUTS = re.compile(r"(?:--out|--report|log\.run_dir)[ =](\S+)")


def commands() -> list[str]:
    """What README.md has a user type, one command after another, continued lines joined."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
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


def test_every_set_is_made_above_where_it_is_read():
    made = {"data/quickstart"}  # by make quickstart
    for command in commands():
        words = shlex.split(command, comments=True)
        missing = sets_read(words) - made
        assert not missing, f"a set read before README.md makes it: {missing} in {command}"
        if "tools/prepare_data.py" in words:
            made.add(words[words.index("--out") + 1])


def test_what_its_commands_write_lies_under_runs_or_data():
    written = [path for command in commands() for path in OUTPUTS.findall(command)]
    stray = [path for path in written if not path.startswith(("runs/", "data/"))]
    assert len(written) > 10 and not stray, f"written beside the project's files: {stray}"


def test_every_tool_that_it_names_is_there():
    named = set(re.findall(r"\b(?:tools|slurm)/\w+\.\w+", (ROOT / "README.md").read_text()))
    lost = [path for path in named if not (ROOT / path).exists()]
    assert len(named) > 10 and not lost, f"README.md names files that are not there: {lost}"


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
        r"^ {4}(\"layers\": .*?)\n\n", (ROOT / "README.md").read_text(), re.M | re.S
    )
    model = from_dict(ModelConfig, json.loads(f"{{{text}}}"))
    model.check()
    assert not model.tied_head and model.stack()[1].window == 1024


def test_help_lists_kinds_without_settings():
    command = [sys.executable, "tools/pretrain.py", "--help-config"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for kind in [f"{r.noun} {k}" for r in (MIXERS, FEED_FORWARDS, NORMS) for k in r]:
        assert re.search(rf"^{kind}(:|$)", said, re.M), kind
