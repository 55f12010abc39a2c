"""A missing permission is one sentence that names the path, and costs nothing else."""

import json
import shutil

import pytest
from rights import without_roots_rights
from whole_runs import train

STEP = "checkpoints/step-00000003"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared_set):
    """Train a run; return its directory and its config."""
    run = tmp_path_factory.mktemp("permissions") / "run"
    config = {
        "model": {"d_model": 16, "n_layers": 1, "max_seq_len": 48, "gam": {"n_slots": 4}},
        "data": {"sets": [{"path": str(prepared_set)}], "seq_len": 48},
        "train": {"steps": 3, "global_batch_size": 2, "warmup_steps": 1, "compile": "off"},
        "parallel": {"engine": "torch", "device": "cpu"},
        "log": {"run_dir": str(run), "wandb": "off", "tensorboard": False},
    }
    train(config)
    return run, config


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
def test_what_is_forbidden_is_one_sentence(tool, trained, tmp_path, command, mode):
    run, config = trained
    arguments, places = COMMANDS[command]
    for number, place in enumerate(places):
        work = tmp_path / str(number)
        work.mkdir()
        copy, file = shutil.copytree(run, work / "run"), work / "config.json"
        file.write_text(json.dumps(config | {"log": config["log"] | {"run_dir": str(copy)}}))
        before = {path for path in copy.rglob("*") if path.is_file()}
        (copy / place).chmod(mode)
        with without_roots_rights():
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


def test_one_unreadable_run_does_not_cost_the_table(tool, trained, tmp_path):
    run, _ = trained
    work = tmp_path
    places = ("", ".", "config.json", "starts.json", "metrics.jsonl", "checkpoints", "logs")
    for number, _ in enumerate(places):
        shutil.copytree(run, work / f"run{number}")
    for number, place in enumerate(places):
        if place:
            (work / f"run{number}" / place).chmod(0)
    with without_roots_rights():
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
