"""The lock of a run directory: refused while its holder lives, free once it is dead."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from whole_runs import after_step, train

from gam_scale.errors import UserError
from gam_scale.run import lock
from gam_scale.run.lock import RunLock, holder, is_held, lock_path

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from gam_scale.run.lock import RunLock
RunLock(sys.argv[1]).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Yield another process, which holds the lock of ``tmp_path / "run"``."""
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


@pytest.mark.parametrize("number", sorted(lock.NO_FLOCK))
def test_where_there_is_no_flock_the_heartbeat_decides(tmp_path, monkeypatch, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "FROZEN_S", 0.3)
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    run = tmp_path / "run"
    with RunLock(run):
        assert is_held(run)
        with pytest.raises(UserError, match=f"written by process {os.getpid()} on "):
            RunLock(run).acquire()
    assert not is_held(run)
    gone = subprocess.Popen(["true"])
    gone.wait()
    written_by(run, host=lock.socket.gethostname(), pid=gone.pid, beat=3)
    assert not is_held(run)
    with RunLock(run):
        assert holder(run)["pid"] == os.getpid()


def test_a_look_at_the_lock_keeps_nobody_from_taking_it(tmp_path, monkeypatch):
    with RunLock(tmp_path / "run"):
        pass
    looking = os.open(lock_path(tmp_path / "run"), os.O_RDONLY)
    lock.fcntl.flock(looking, lock.fcntl.LOCK_SH)
    real = lock.time.sleep

    def look_no_longer(seconds):
        lock.fcntl.flock(looking, lock.fcntl.LOCK_UN)
        real(0)

    monkeypatch.setattr(lock.time, "sleep", look_no_longer)
    with RunLock(tmp_path / "run"):
        assert holder(tmp_path / "run")["pid"] == os.getpid()
    os.close(looking)


def test_who_lost_it_ends(tmp_path):
    """A node that was frozen while its job started anew elsewhere must not write on."""
    code = (
        "import sys; from gam_scale.run import lock; lock.BEAT_S = 0.01;"
        "lock.RunLock(sys.argv[1]).acquire(); print('held', flush=True);"
        "import threading; threading.Event().wait(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    text = json.dumps({"host": "elsewhere", "pid": 7, "token": "x"}).ljust(512) + "\n"
    with open(lock_path(tmp_path / "run"), "r+") as file:
        file.write(text)
    # A heartbeat may have overwritten the file: write again until the holder notices.
    while process.poll() is None:
        lock_path(tmp_path / "run").write_text(text)
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 1
    process.communicate()


LOSE = """
import sys
from gam_scale.run import lock
lock.BEAT_S = 1000.0  # only check() looks
held = lock.RunLock(sys.argv[1])
held.acquire()
print("held", flush=True)
sys.stdin.readline()
held.check()
print("writes on", flush=True)
"""


@pytest.mark.parametrize("what", ["nothing", "removed", "replaced", "grown"])
def test_a_lock_that_is_gone_ends_its_holder_before_it_writes(tmp_path, what):
    path = lock_path(tmp_path / "run")
    command = [sys.executable, "-c", LOSE, str(tmp_path / "run")]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    if what == "grown":
        with open(path, "a") as file:
            file.write("x" * 5000)
    if what == "replaced":
        path.with_name("copy").write_bytes(path.read_bytes())
        path.with_name("copy").rename(path)
    if what == "removed":
        path.unlink()
        with RunLock(tmp_path / "run"):
            pass
    out, _ = process.communicate("go\n")
    if what in ("nothing", "grown"):
        assert out == "writes on\n", f"lock: a holder is ended for {what}"
    else:
        assert (out, process.returncode) == ("", 1), f"lock: {what}, and its holder writes on"


def test_one_directory_has_one_lock_whatever_links_lead_to_it(tmp_path, other):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far").symlink_to(tmp_path / "link")
    for path in (tmp_path / "link", tmp_path / "elsewhere" / "far"):
        assert is_held(path), "lock: a link to the directory is free"
        with pytest.raises(UserError, match=f"written by process {other.pid} on "):
            RunLock(path).acquire()


def _lie(path, what):
    """Put something that is no lock at ``path``; return the file that must stay as it is."""
    target = path.with_name("target")
    if what == "link":
        target.write_text("precious" * 100)
        path.symlink_to(target)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.write_bytes(what)
        return path
    return target


@pytest.mark.parametrize(
    "what",
    ["link", "pipe", "folder", b"precious" * 100, b"[" * 600, b'{"host": "of a user"}', b"17\n"],
)
def test_what_is_no_lock_is_refused_and_left_as_it_is(tmp_path, what):
    target = _lie(lock_path(tmp_path / "run"), what)
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(UserError, match="cannot be locked|not a lock of ours"):
        RunLock(tmp_path / "run").acquire()
    after = target.read_bytes() if target.exists() else None
    assert after == before, "lock: it wrote over what is none of its files"
    assert not is_held(tmp_path / "run") and holder(tmp_path / "run") is None


@pytest.mark.parametrize("content", [b"", b"\0" * 513, b"null".ljust(512) + b"\nmore"])
def test_a_lock_that_nobody_holds_is_taken(tmp_path, content):
    lock_path(tmp_path / "run").write_bytes(content)
    with RunLock(tmp_path / "run"):
        assert holder(tmp_path / "run")["pid"] == os.getpid()


def test_a_lock_that_is_stale_over_nfs_is_lost(tmp_path, monkeypatch):
    """ESTALE: another host removed or replaced the file. EIO may pass, and is tolerated."""
    held = RunLock(tmp_path / "run")
    monkeypatch.setattr(lock, "BEAT_S", 1000.0)
    with held:
        for number, mine in ((errno.EIO, True), (errno.ESTALE, False)):

            def fail(*_, number=number):
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patch:
                patch.setattr(lock.os, "pread", fail)
                assert held._mine() == mine, (
                    f"lock: {os.strerror(number)}, and it is ours: {not mine}"
                )


@pytest.mark.parametrize("step", [9, 11, 20])  # before a line, a checkpoint, the summary
def test_a_run_that_lost_its_lock_writes_nothing_more(tmp_path, tiny, monkeypatch, step):
    run = tmp_path / "run"
    kept = {}

    class End(BaseException):
        pass

    def end(status):
        raise End

    def lose():
        lock_path(run).unlink()
        kept.update({p: p.read_bytes() for p in run.rglob("*") if p.is_file()})

    monkeypatch.setattr(lock, "BEAT_S", 1000.0)
    monkeypatch.setattr(lock.os, "_exit", end)
    config = tiny(run, eval={"every_steps": 0}, log={"every_steps": 10})
    config["checkpoint"] |= {"every_steps": 12, "background": False}
    with after_step(step, lose), pytest.raises(End):
        train(config)
    logs = run / "logs"
    found = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and logs not in p.parents}
    kept = {p: content for p, content in kept.items() if logs not in p.parents}
    assert found == kept, "lock: a run that lost its lock wrote on"
