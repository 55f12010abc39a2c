"""What the system forbids is one sentence that names the path, and costs nothing but that."""

import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from whole_runs import train

NOBODY = 65534
STEP = "checkpoints/step-00000003"


@contextmanager
def unprivileged():
    """Root may do anything: be nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture(scope="module")
def open_folder():
    """A temporary folder that anybody may enter, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def trained(open_folder, prepared_set):
    """A run directory of nobody's, and the config that made it."""
    data = shutil.copytree(prepared_set, open_folder / "data")
    config = {
        "model": {"d_model": 16, "n_layers": 1, "max_seq_len": 48, "gam": {"n_slots": 4}},
        "data": {"sets": [{"path": str(data)}], "seq_len": 48},
        "train": {"steps": 3, "global_batch_size": 2, "warmup_steps": 1, "compile": "off"},
        "parallel": {"engine": "torch", "device": "cpu"},
        "log": {"run_dir": str(open_folder / "run"), "wandb": "off", "tensorboard": False},
    }
    train(config)
    give_away(open_folder)
    return open_folder / "run", config


def give_away(folder):
    for path in (folder, *folder.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


COMMANDS = {
    "pretrain": (
        lambda run, config: ("--config", config),
        (".", "config.json", "metrics.jsonl", "starts.json", "logs", "checkpoints", STEP),
    ),
    "pretrain --fresh": (
        lambda run, config: ("--config", config, "--fresh"),
        (".", "logs", "checkpoints", STEP, "config.json"),
    ),
    "generate": (
        lambda run, config: (run, "--max-tokens", "2"),
        (".", "checkpoints", STEP, f"{STEP}/checksums.json", f"{STEP}/state.json", "config.json"),
    ),
    "evaluate": (lambda run, config: (run, "--max-tokens", "50"), (".", f"{STEP}/index.json")),
    "convert_checkpoint export": (
        lambda run, config: (run, "--to", "hf", "--out", run.parent / "hf"),
        (STEP, f"{STEP}/tokenizer.model"),
    ),
}


@pytest.mark.parametrize("mode", [0, 0o500], ids=["hidden", "read-only"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_forbidden_is_one_sentence(tool, trained, open_folder, command, mode):
    run, config = trained
    arguments, places = COMMANDS[command]
    for place in places:
        work = Path(tempfile.mkdtemp(dir=open_folder))
        copy, file = shutil.copytree(run, work / "run"), work / "config.json"
        file.write_text(json.dumps(config | {"log": config["log"] | {"run_dir": str(copy)}}))
        give_away(work)
        before = {path for path in copy.rglob("*") if path.is_file()}
        (copy / place).chmod(mode)
        with unprivileged():
            done = tool(*command.split(), *arguments(copy, file))
        (copy / place).chmod(0o755)
        what = f"permissions: {command} where {place} has mode {mode:o}"
        assert done.status in (0, 2), f"{what}: {done}"
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.status == 2) and "Traceback" not in done.err, f"{what}: {done}"
        assert all(str(work) in line for line in errors), f"{what}: {errors}"
        if "--fresh" in command and errors:
            after = {path for path in copy.rglob("*") if path.is_file()}
            assert before <= after, f"{what}: half of the run is removed"


def test_one_unreadable_run_does_not_cost_the_table(tool, trained, open_folder):
    run, _ = trained
    work = Path(tempfile.mkdtemp(dir=open_folder))
    places = ("", ".", "config.json", "starts.json", "metrics.jsonl", "checkpoints", "logs")
    for number, _ in enumerate(places):
        shutil.copytree(run, work / f"run{number}")
    give_away(work)
    for number, place in enumerate(places):
        if place:
            (work / f"run{number}" / place).chmod(0)
    with unprivileged():
        done = tool("launch", "--status", work)
        only = tool("launch", "--status", work / "run1")
    for path in work.rglob("*"):
        path.chmod(0o755)
    rows = [line.split() for line in done.out.splitlines() if str(work) in line]
    assert done.status == 0 and len(rows) == len(places), f"--status: the table ends: {done}"
    states = ["unreadable" if "unreadable" in row else "finished" for row in rows]
    assert states == ["finished", *["unreadable"] * 5, "finished"], done.out
    assert done.err.count("warning: ") == 5 and str(work / "run3" / "starts.json") in done.err
    assert only.status == 2 and only.err.count("error: ") == 1
