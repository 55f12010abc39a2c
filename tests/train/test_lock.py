"""The lock of a run directory: refused while its holder lives, free once it is dead."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gam_scale.errors import UserError
from gam_scale.train import lock
from gam_scale.train.lock import RunLock, holder, is_held, lock_path

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from gam_scale.train.lock import RunLock
RunLock(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def written_by(run, **content):
    """Leave a lock file as a holder that never released it would."""
    lock_path(run).write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "x", **content}))


def test_who_holds_it_is_named(tmp_path, other):
    assert is_held(tmp_path / "run")
    with pytest.raises(UserError, match=f"written by process {other.pid} on "):
        RunLock(tmp_path / "run").acquire()


def test_a_killed_holder_keeps_nothing(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert not is_held(tmp_path / "run") and holder(tmp_path / "run")["pid"] == other.pid
    with RunLock(tmp_path / "run"):
        assert holder(tmp_path / "run")["pid"] == os.getpid()
        assert is_held(tmp_path / "run")
    assert holder(tmp_path / "run") is None and not is_held(tmp_path / "run")


def test_a_silent_holder_on_another_host_is_dead(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WATCH_S", 0.1)
    written_by(tmp_path / "run", beat=3)
    with RunLock(tmp_path / "run"):
        assert holder(tmp_path / "run")["pid"] == os.getpid()


def test_a_beating_holder_on_another_host_is_alive(tmp_path, monkeypatch):
    """Where a file system keeps locks to each node, flock succeeds; the heartbeat decides."""
    written_by(tmp_path / "run", job="17", beat=3)
    real = lock.time.sleep
    beats = iter(range(4, 100))

    def beat(seconds):
        written_by(tmp_path / "run", job="17", beat=next(beats))
        real(0)

    monkeypatch.setattr(lock.time, "sleep", beat)
    with pytest.raises(UserError, match="process 7 on elsewhere, job 17"):
        RunLock(tmp_path / "run").acquire()


def test_who_lost_it_ends(tmp_path):
    """A node that was frozen while its job started anew elsewhere must not write on."""
    code = (
        "import sys; from gam_scale.train import lock; lock.BEAT_S = 0.01;"
        "lock.RunLock(sys.argv[1]).acquire(); print('held', flush=True);"
        "import threading; threading.Event().wait(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    text = json.dumps({"host": "elsewhere", "pid": 7, "token": "x"}).ljust(512) + "\n"
    with open(lock_path(tmp_path / "run"), "r+") as file:
        file.write(text)
    # A heartbeat may have been on its way: write again until it is noticed.
    while process.poll() is None:
        lock_path(tmp_path / "run").write_text(text)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 1
    process.communicate()
