"""One job at a time writes a run directory, and a dead one never keeps it.

The lock is a file beside the run directory, held in two ways at once. ``flock`` is exact on one
machine and on file systems that carry locks between nodes: the kernel drops it with its holder.
Where a file system keeps locks to each node (Lustre's ``localflock``), the holder's heartbeat
decides: it rewrites a counter in the file, and who comes from another host watches the counter
rather than compare clocks. Who finds its own name gone from the file, such as a node that was
frozen while the job started anew elsewhere, ends without writing anything more.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError

logger = logging.getLogger("gam_scale")

BEAT_S = 2.0
"""Between heartbeats."""
WATCH_S = 8.0
"""Without a heartbeat, after which a holder on another host is dead, if its flock is gone."""
FROZEN_S = 30.0
"""The same where its flock is still there: a node that hangs keeps it, and so does a slow one."""


class RunLock:
    """The right to write ``run_dir``; :meth:`acquire` and :meth:`release` it, or use ``with``.

    Args:
        run_dir: need not exist; the lock survives its removal.
    """

    def __init__(self, run_dir: str | Path) -> None:
        run_dir = Path(run_dir).absolute()
        self.run_dir, self.path = run_dir, lock_path(run_dir)
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID", ""),
            "token": secrets.token_hex(8),
        }
        self._file: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="run lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UserError: another job holds it, named with host, process and job.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"log.run_dir {self.run_dir} cannot be locked: {error}") from None
        try:
            locked, before = self._flock(), holder(self.run_dir)
            elsewhere = before is not None and before.get("host") != self._me["host"]
            if elsewhere:
                self._watch(before, WATCH_S if locked else FROZEN_S)
            elif not locked:  # on one host flock is exact
                self._refuse(before)
        except UserError:
            os.close(self._file)
            self._file = None
            raise
        self._write({**self._me, "beat": 0})
        self._thread.start()

    def release(self) -> None:
        """Give the lock back; the next one need not wait."""
        if self._file is None:
            return
        self._stop.set()
        self._thread.join()
        if self._mine():
            self._write(None)
        os.close(self._file)
        self._file = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _flock(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _watch(self, before: dict[str, Any], seconds: float) -> None:
        """Wait for a sign of life of a holder on another host; without any it is dead."""
        deadline = time.monotonic() + seconds
        logger.info("%s was last written by %s: is it alive?", self.run_dir, _name(before))
        while time.monotonic() < deadline:
            now = holder(self.run_dir)
            if now is None:
                return
            if now != before:
                self._refuse(now)
            time.sleep(BEAT_S / 4)

    def _refuse(self, other: dict[str, Any] | None) -> None:
        raise UserError(
            f"log.run_dir {self.run_dir} is being written by {_name(other)}; expected a run "
            "directory of its own for each job, or that job ended first"
        )

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT_S):
            beat += 1
            # A file system that fails for a moment is no reason to end a run.
            with contextlib.suppress(OSError):
                if not self._mine():
                    logger.error(
                        "%s was taken over by %s", self.run_dir, _name(holder(self.run_dir))
                    )
                    os._exit(1)
                self._write({**self._me, "beat": beat})

    def _mine(self) -> bool:
        current = _parse(os.pread(self._file, 4096, 0))
        return current is not None and current.get("token") == self._me["token"]

    def _write(self, content: dict[str, Any] | None) -> None:
        # One write of a fixed length: a reader never finds half of it.
        text = json.dumps(content).ljust(512) + "\n"
        os.pwrite(self._file, text.encode(), 0)


def lock_path(run_dir: str | Path) -> Path:
    """The lock file of a run directory; beside it, where ``--fresh`` does not remove it."""
    run_dir = Path(run_dir).absolute()
    return run_dir.with_name(f".{run_dir.name}.lock")


def holder(run_dir: str | Path) -> dict[str, Any] | None:
    """Who wrote the lock last without releasing it: host, pid, job, beat. It may be dead."""
    try:
        return _parse(lock_path(run_dir).read_bytes())
    except OSError:
        return None


def is_held(run_dir: str | Path) -> bool:
    """Whether a process that this host can see holds the lock now."""
    try:
        file = os.open(lock_path(run_dir), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(file)


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _name(other: dict[str, Any] | None) -> str:
    if not other:
        return "another process"
    job = f", job {other['job']}" if other.get("job") else ""
    return f"process {other.get('pid')} on {other.get('host')}{job}"
