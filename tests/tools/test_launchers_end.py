"""Killed ranks, which torchrun restarts, and killed launchers, with which the ranks end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.run.lock import is_held
from gam_scale.run.metrics_file import read_metrics

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture
def start(tmp_path, tiny):
    """Yield ``start(launcher words)``, which starts a long run in ``tmp_path / "run"``.

    All processes are killed at the end of the test.
    """
    config = tiny(
        tmp_path / "run",
        train={"steps": 100_000},
        checkpoint={"every_steps": 50},
        eval={"every_steps": 0},
        log={"every_steps": 1},
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    started = []

    def run(*launcher: object, env: dict[str, str] | None = None) -> subprocess.Popen:
        command = [*map(str, launcher), "tools/pretrain.py", "--config", str(path)]
        with open(tmp_path / "output", "a") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | (env or {}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(process)
        return process

    yield run
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], bool], what: str, folder: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        output = (folder / "output").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no {what} in {seconds} s:\n{output}"
        time.sleep(0.05)


def steps(run: Path) -> int:
    """Return the last logged step; 0 before there is one."""
    return (read_metrics(run / "metrics.jsonl") or [{"step": 0}])[-1]["step"]


def rank_processes(config: Path) -> list[int]:
    """Return the ids of the processes that train ``config``, without launchers."""
    launchers = ("torchrun", "deepspeed")
    commands = {each.pid: each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"])}
    return sorted(
        pid
        for pid, words in commands.items()
        if str(config) in words and not any(name in " ".join(words[:4]) for name in launchers)
    )


def saved_and_over(folder: Path) -> None:
    run, config = folder / "run", folder / "config.json"
    wait_for(lambda: not rank_processes(config), "end of the ranks", folder)
    assert not is_held(run)
    saved = CheckpointStore(run / "checkpoints").steps()[-1]
    assert saved == steps(run), "what was trained was not saved"


def test_torchrun_restarts_a_killed_rank_and_ranks_end_with_a_killed_torchrun(tmp_path, start):
    run, config = tmp_path / "run", tmp_path / "config.json"
    options = ("--nproc_per_node", 2, "--max-restarts", 2, "--master_port", 29_571)
    torchrun = start(BIN / "torchrun", *options)
    wait_for(lambda: steps(run) > 60, "first start", tmp_path)
    before = rank_processes(config)
    assert len(before) == 2
    os.kill(before[1], signal.SIGKILL)
    wait_for(lambda: not set(before) & set(rank_processes(config)), "end of both ranks", tmp_path)
    reached = steps(run)
    wait_for(lambda: steps(run) > reached + 10, "restart after a killed rank", tmp_path)
    starts = json.loads((run / "starts.json").read_text())["starts"]
    assert len(starts) == 2 and starts[1]["step"] >= 50
    torchrun.kill()
    saved_and_over(tmp_path)


def test_ranks_end_with_the_deepspeed_command(tmp_path, start):
    deepspeed = start(BIN / "deepspeed", "--num_gpus", 1)
    wait_for(lambda: steps(tmp_path / "run") > 3, "first step", tmp_path)
    deepspeed.terminate()
    saved_and_over(tmp_path)
