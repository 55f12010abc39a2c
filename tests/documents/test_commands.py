"""Every command of README, CONTRIBUTING and docs/ is checked, or marked with what it needs."""

import ast
import importlib
import json
import re
import shlex
from functools import cache

import pytest
from pages import COMMANDS, FENCED, PAGES, ROOT, Command, blocks, commands, inline
from typed import checked

from gam_scale.config import RunConfig
from gam_scale.model.config import ModelConfig
from gam_scale.model.parts import MIXERS
from gam_scale.strict import describe, from_dict

OUTPUTS = re.compile(r"(?:--out|--report|log\.run_dir)[ =](\S+)")
OURS = ("runs/", "data/", "accept")
NEEDS = re.compile(r"\bneeds? (a GPU|GPUs|Slurm|root|a network|lm-eval|a cluster)", re.I)
"""How a page marks a command that no test can run or check: in a comment of its block."""
KEYS = {re.sub(r"\[\]", "", row[0]) for row in describe(RunConfig)}
SECTIONS = {key.rpartition(".")[0] for key in KEYS} | {key.partition(".")[0] for key in KEYS}
SETTING = re.compile(r"^(?:model|data|train|parallel|checkpoint|log|eval)(?:\.[a-z_]\w*)+")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.name)
def test_every_command_is_right_or_marked(page):
    for command in commands(page):
        try:
            known = checked(command.words)
        except Exception as error:
            raise AssertionError(f"{command}\n{type(error).__name__}: {error}") from error
        marked = NEEDS.search(command.said)
        assert known or marked, f"{command}\nno test knows it; expected a comment: # needs ..."
        assert marked or not out_of_reach(command.line), f"{command}\nexpected: # needs GPUs, ..."


def out_of_reach(line: str) -> bool:
    """Return whether a laptop cannot run it: Slurm jobs, or configs for GPUs without device=cpu."""
    large = re.search(r"tools/(?:pretrain|launch)\.py.*configs/(?:gam_1b|ctx)", line)
    accept = "benchmarks.gpu_accept" in line
    jobs = re.search(r"(?:^|\s)(?:sbatch|slurm/\w+\.sh)\b", line)
    return bool(jobs) or bool((large or accept) and not re.search(r"device[= ]cpu", line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_within_sentences_are_right(page):
    for code in inline(page):
        if re.match(
            r"(python (tools/|-m (benchmarks|gam_scale)\.)|make |deepspeed .*tools/)", code
        ):
            words = shlex.split(code)
            # A tool's name alone mentions it, and is no command to type.
            assert len(words) < 3 + ("-m" in words) or checked(words), f"{page.name}: {code}"
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
            theirs = flag in OTHERS or re.match(r"(sbatch|pip|torchrun|torchfrtrace|srun) ", code)
            assert theirs or flag in flags(), f"{page.name}: `{code}`: nothing has {flag}"


OTHERS = {"--gpus-per-task", "--max-restarts", "--signal", "--time", "--cpus-per-task", "--quiet"}
"""Flags of Slurm's commands and of launchers that sentences name."""


@cache
def flags() -> set[str]:
    """Return all flags that stand in the code of this project's commands."""
    folders = ("tools", "benchmarks", "gam_scale", "tests/attack")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    text = "".join(path.read_text() for path in sources)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))


def test_all_command_blocks_are_marked_as_such():
    for page in PAGES:
        for name, text in FENCED.findall(page.read_text()):
            first = text.lstrip("$ ").partition(" ")[0]
            typed = first in ("python", "python3", "make", "deepspeed", "sbatch", "pip", "torchrun")
            assert name == "bash" or not typed, f"{page.name}: a fence without bash: {text[:80]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_imports_what_is_there(page):
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gam_scale"):
                module = importlib.import_module(node.module)
                lost = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not lost, f"{page.name}: {node.module} has no {lost}"


def fragments(page):
    """Yield the JSON blocks of a page as (object, text); add braces to bare parts of a config."""
    for text in blocks(page, "json"):
        whole = text if text.lstrip().startswith("{") else f"{{{text.strip().rstrip(',')}}}"
        yield json.loads(whole), text


def read(value: dict) -> bool:
    """Read a part of a config; return whether ``value`` is one."""
    if "kind" in value:
        MIXERS.read(value, "layer")
    elif value.keys() & vars(RunConfig())["model"].__dict__.keys():
        from_dict(ModelConfig, value).check()
    elif value.keys() & vars(RunConfig()).keys():
        from_dict(RunConfig, value)
    else:
        return False
    return True


def test_json_of_a_page_is_config():
    found = [read(value) for page in PAGES for value, _ in fragments(page)]
    assert sum(found) >= 4, "the examples of configs are gone"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_a_page_names_is_one(page):
    said = re.findall(r"`([^`\n]+)`", page.read_text())
    for key in (found[0] for text in said if (found := SETTING.match(text))):
        files = (".py", ".json", ".jsonl", ".md", ".sh")
        known = key in KEYS or key in SECTIONS or key.endswith(files)
        assert known, f"{page.name} names the setting {key}, which is not there"


PATH = re.compile(r"((?:gam_scale|tests|configs|benchmarks|tools|slurm)/[\w/.]+\w)(?:::(\w+))?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_a_page_names_are_there(page):
    for path, test in (found.groups() for code in inline(page) if (found := PATH.fullmatch(code))):
        assert (ROOT / path).exists() or re.search(r"NAME|test_x", path), (
            f"{page.name} names {path}"
        )
        text = (ROOT / path).read_text() if test else ""
        assert not test or f"def {test}(" in text, f"{page.name} names {path}::{test}"


def sets_read(words: list[str]) -> set[str]:
    """Return the prepared sets that a command, its config or its sweep file names as input."""
    options = dict(zip(words, words[1:], strict=False))
    found = {options[flag] for flag in ("--wikitext2", "--tinystories") if flag in options}
    overridden = [word for word in words if word.startswith("data.sets=")]
    if overridden:
        return found | {entry["path"] for entry in json.loads(overridden[0].partition("=")[2])}
    if "--config" in options and (ROOT / options["--config"]).exists():
        config = json.loads((ROOT / options["--config"]).read_text())
        found |= {entry["path"] for entry in config["data"]["sets"]}
    if "--sweep" in options and "tools/sweep.py" in words:
        found.add(json.loads((ROOT / options["--sweep"]).read_text())["data"])
    return found


def sets_made(page) -> set[str]:
    """Return the prepared sets that a page's commands make."""
    found = [command.words for command in commands(page)]
    return {w[w.index("--out") + 1] for w in found if "tools/prepare_data.py" in w and "--out" in w}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_set_is_made_on_the_page_that_reads_it_or_on_one_it_links_to(page):
    linked = [page.parent / name for name in re.findall(r"\]\(([\w/]+\.md)", page.read_text())]
    made = {"data/quickstart", *sets_made(page)}.union(*map(sets_made, linked))
    for command in commands(page):
        missing = sets_read(command.words) - made
        assert not missing, f"{command}\nreads a set that neither it nor a linked page makes"


def test_what_commands_write_lies_under_runs_or_data():
    written = [path for command in COMMANDS for path in OUTPUTS.findall(command.line)]
    stray = [path for path in written if not path.startswith(OURS)]
    assert len(written) > 20 and not stray, f"written beside the project's files: {stray}"


def test_every_tool_that_they_name_is_there():
    text = "".join(page.read_text() for page in PAGES)
    named = set(re.findall(r"(?<!/)\b(?:tools|slurm)/\w+\.\w+", text))
    lost = [path for path in named if not (ROOT / path).exists()]
    assert len(named) > 15 and not lost, f"files are named that are not there: {lost}"


@pytest.mark.parametrize(
    "line",
    [
        "python tools/pretrain.py --config configs/quickstart.json --set train.stepz=3",
        "python tools/pretrain.py --confgi configs/quickstart.json",
        "deepspeed --quiet tools/pretrain.py --config configs/none.json",
        "python tools/gone.py",
        "python -m benchmarks.train_step --sepcial",
        "make quick",
        "GAM_ARGS=--frish sbatch slurm/gam_1b.sh",
        "CONFIG=configs/none.json sbatch slurm/gam_1b.sh",
    ],
)
def test_a_wrong_command_is_found(line):
    with pytest.raises(Exception, match=r"not a setting|unrecognized|no such file|not there|has"):
        checked(shlex.split(line))


def test_what_a_page_says_of_a_command_is_read_with_it():
    command = Command("a.md", "lm_eval --model hf  # needs lm-eval", " # needs lm-eval")
    assert command.words == ["lm_eval", "--model", "hf"] and NEEDS.search(command.said)
    assert not checked(command.words)
