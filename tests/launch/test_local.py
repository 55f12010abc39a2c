"""tools/launch.py on a machine without Slurm, from submission to the status table."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm

from gam_scale.launch.follow import OVER, cancel, follow, log_of
from gam_scale.launch.status import status

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("submitit")


def here() -> dict[str, str]:
    """Return this environment without variables of a Slurm job."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    return env | {"OMP_NUM_THREADS": "1"}


def launch(*words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/launch.py", *map(str, words)],
        cwd=ROOT,
        env=here(),
        text=True,
        capture_output=True,
        timeout=170,
    )


def test_two_ranks_followed_to_the_end(tiny, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run")))
    done = launch("--config", config, "--gpus-per-node", 2, "--follow")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("this machine, without Slurm: ")
    assert "2 rank(s) on cpu" in done.stdout and "step 20/20" in done.stdout
    table = warm.run(["tools/launch.py", "--status", tmp_path], env=here())
    (row,) = [line for line in table.stdout.splitlines() if "20/20" in line]
    assert "finished" in row and "step 20" in row


def test_a_pipe_ends_with_the_command_and_not_with_the_job(tiny, tmp_path):
    config, run = tmp_path / "config.json", tmp_path / "run"
    config.write_text(json.dumps(tiny(run, train={"steps": 1_000_000}, eval={"every_steps": 0})))
    done = launch("--config", config)  # reads its output to the end, as `| tee` does
    try:
        assert done.returncode == 0 and "log " in done.stdout, done.stdout + done.stderr
        said = status(run, None).state
        assert said in ("starting", "running"), f"the pipe was held until the job was {said}"
        while not (run / "metrics.jsonl").exists():
            assert status(run, None).state not in OVER, log_of(run).read_text()
            time.sleep(0.1)
    finally:
        assert "was asked to save and end" in cancel(run)
        assert follow(run, io.StringIO()) == "stopped"


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "expected one of --config"),
        (("--config", "configs/quickstart.json", "--nodes", 0), "--nodes is 0"),
        (("--config", "configs/quickstart.json", "--nodes", 2), "--nodes is 2 without Slurm"),
        (("--config", "missing.json"), "missing.json: no such file"),
        (("--cancel", "missing"), "missing is never started"),
    ],
)
def test_a_mistake_is_one_sentence(words, said):
    done = warm.run(["tools/launch.py", *words], env=here())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
