"""The same run started by python, deepspeed, torchrun and (its environment) srun."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def start(tmp_path, tiny):
    """Return ``start(name, launcher, engine)``, which starts a run in ``tmp_path / name``.

    Without a launcher the run is forked, which is enough where its start is not what is tested.
    """

    def run(name, launcher=None, engine="deepspeed", steps=8, env=None):
        config = tiny(
            tmp_path / name,
            model={"d_model": 16, "n_layers": 1, "dropout": 0.0},
            train={"steps": steps, "lr": 1e-2, "warmup_steps": 1},
            parallel={"engine": engine},
            checkpoint={"every_steps": 50},
            eval={"every_steps": 0},
            log={"every_steps": 1},
        )
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config))
        command = ["tools/pretrain.py", "--config", str(path)]
        variables = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
        if launcher is None:
            return warm.program(command, env=variables)
        return subprocess.Popen(
            [*launcher, *command],
            cwd=ROOT,
            env=variables,
            text=True,
            stdout=-1,
            stderr=subprocess.STDOUT,
        )

    return run


def finish(process) -> None:
    if isinstance(process, warm.Program):
        assert process.wait(240) == 0, process.err
        return
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output


def losses(folder) -> list[float]:
    return [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_every_launcher_gives_the_same_run(tmp_path, start):
    slurm = {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": "77",
    }
    finish(start("python", [sys.executable]))
    finish(start("deepspeed", [BIN / "deepspeed", "--num_gpus", "1"]))
    finish(start("srun", [sys.executable], env=slurm))
    torchrun = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "29561"]
    finish(start("torchrun2", torchrun))
    reference = losses(tmp_path / "python")
    assert losses(tmp_path / "deepspeed") == losses(tmp_path / "srun") == reference
    # Two ranks add gradients in another order.
    assert losses(tmp_path / "torchrun2") == pytest.approx(reference, rel=1e-5)


def test_sigkill_and_the_same_command_again(tmp_path, start):
    """Killed at arbitrary moments, over and over, the run ends as if nothing had happened."""
    options = {"engine": "torch", "steps": 240}
    finish(start("whole", **options))
    for seen_step in (1, 60, 130):
        process = start("killed", **options)
        metrics = tmp_path / "killed" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not _has_step(metrics, seen_step) and time.monotonic() < deadline:
            assert process.poll() is None, process.err
            time.sleep(0.01)
        process.kill()
    finish(start("killed", **options))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def _has_step(metrics: Path, step: int) -> bool:
    return metrics.exists() and f'"step": {step},' in metrics.read_text()


def test_evaluate_and_generate_need_only_the_checkpoint(tmp_path, start, tool):
    finish(start("run", engine="torch", steps=60))
    checkpoint = (tmp_path / "run" / "checkpoints" / "step-00000060").rename(tmp_path / "alone")
    done = tool("evaluate", checkpoint, "--json")
    figures = json.loads(done.out)
    assert figures["step"] == 60 and 1 < figures["perplexity"] < 200
    text = tmp_path / "text.txt"
    text.write_text("the cat sees the dog. " * 40)
    figures = json.loads(tool("evaluate", checkpoint, "--text", text, "--json").out)
    assert figures["bytes"] == len(text.read_bytes())
    done = tool("generate", checkpoint, "the cat", "--max-tokens", 20, "--seed", 4)
    assert done.status == 0 and done.out.startswith("the cat")
    assert tool("generate", checkpoint, "the cat", "--max-tokens", 20, "--seed", 4).out == done.out


def test_torchruns_last_lines_are_our_sentence(tool, tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))  # as torchrun does for each rank
    assert tool("pretrain", "--config", tmp_path / "none.json").status == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    said = str(ChildFailedError("pretrain.py", {0: failure}))
    last = said.splitlines()[-2]
    assert last == f"  traceback : error: {tmp_path}/none.json: no such file", said
