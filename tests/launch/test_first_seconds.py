"""A signal in a launched job's first seconds: the job does not count as failed, and restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.launch.submit import Request, submit

pytest.importorskip("submitit")

ROOT = Path(__file__).resolve().parents[2]


def test_a_signal_before_training_stands_is_no_failure(tiny, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", train={"steps": 100_000})))
    (job,) = submit(Request([str(config)], [], 1, 1, 5, "local"))
    controller = psutil.Process(int(job.job_id))
    try:
        rank = signalled(controller, signal.SIGUSR2, deadline=time.monotonic() + 60)
        psutil.wait_procs([rank, controller], timeout=60)
        assert not rank.is_running(), "the signal was lost: the job trains on"
    finally:
        for process in [*controller.children(), controller] if controller.is_running() else []:
            process.kill()
    log = job.paths.stdout.read_text()
    assert "not checkpointable" not in log and "Traceback" not in log, log
    assert "stopped by a signal before training began" in log or "Requeued job" in log, log
    assert not job.paths.result_pickle.exists(), "submitit takes the job for one that is over"
    assert not CheckpointStore(tmp_path / "run" / "checkpoints").steps()


def test_a_command_heeds_signals_before_it_imports_torch(tiny, tmp_path):
    """The import takes seconds: a SIGTERM meanwhile leaves a run that can still start."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", train={"steps": 2, "warmup_steps": 1})))
    finder = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    tool = str(ROOT / "tools" / "pretrain.py")
    code = f"import sys; sys.argv = sys.argv[1:]\n{finder}"
    command = [sys.executable, "-c", code, tool, "--config", str(config)]
    done = subprocess.run(
        [*command, "--stopped-status", "75"], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 75
    assert not CheckpointStore(tmp_path / "run" / "checkpoints").steps()


def signalled(controller: psutil.Process, number: int, deadline: float) -> psutil.Process:
    """Send the rank a signal as soon as it handles that signal; return the rank."""
    while time.monotonic() < deadline:
        for rank in controller.children():
            if handles(rank.pid, number):
                os.kill(rank.pid, number)
                return rank
        time.sleep(0.002)
    raise AssertionError("the rank did not come to handle signals")


def handles(process: int, number: int) -> bool:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return False
    (caught,) = [int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")]
    return bool(caught >> (number - 1) & 1)
