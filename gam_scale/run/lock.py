"""The lock of a run directory: one job at a time writes there, and a dead job never keeps the lock.

The lock is a file beside the run directory, held in two ways at once. ``flock`` is exact on one
machine and on file systems that carry locks between nodes: the kernel drops it with its holder.
Where a file system keeps locks to each node (Lustre's ``localflock``), a heartbeat decides: the
holder rewrites a counter in the file, and a job on another host watches whether the counter
changes, so that no clocks are compared. Where a file system has no such locks at all (Lustre
mounted without ``flock``, NFS without a lock daemon), the heartbeat decides on one host too.

The lock belongs to the real directory, whatever links lead to it. A holder loses the lock if its
own token is gone from the file (its node was frozen, say, while the job started anew elsewhere) or
if another file or none is at the path. It then ends without writing anything more.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.process import Process
from gam_scale.strict import parse_json

logger = logging.getLogger("gam_scale")

BEAT_S = 2.0
"""Seconds between heartbeats."""
WATCH_S = 8.0
"""Seconds without a heartbeat that make a holder on another host dead, if its flock is gone."""
FROZEN_S = 30.0
"""The same if its flock is still there, since a node that hangs keeps it, and so does a slow one;
or if the file system has no flock."""
PROBED_S = 1.0
"""Seconds for which another's flock may be that of :func:`is_held`, which has it for a moment."""
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""Errors of a file system that has no flock."""
LENGTH = 513
"""Bytes of a lock file that this module writes and reads; anything after them is ignored."""


class RunLock:
    """The right to write ``run_dir``; :meth:`acquire` and :meth:`release` it, or use ``with``.

    Args:
        run_dir: need not exist; the lock survives its removal.
    """

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir, self.path = Path(run_dir).absolute(), lock_path(run_dir)
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
            UserError: another job, named with host, process and job, holds the lock; or the file
                at the lock's path is not a lock, and is left as it was.
        """
        locked = self._open()
        try:
            before = _read(self._descriptor, self.path)
            here = before is not None and before.get("host") == self._me["host"]
            if locked is False and (before is None or here):  # on one host flock is exact
                self._refuse(before)
            if before is not None and not (locked and here):
                self._watch(before, WATCH_S if locked else FROZEN_S)
        except UserError:
            os.close(self._descriptor)
            self._file = None
            raise
        self._write({**self._me, "beat": 0})
        self._thread.start()

    def check(self) -> None:
        """End this process if it has lost the lock; to call before any write that others see."""
        if self._file is not None and not self._mine():
            other = _name(holder(self.run_dir))
            logger.error("%s: its lock was removed, or taken over by %s", self.run_dir, other)
            os._exit(1)

    def release(self) -> None:
        """Release the lock, so that the next job need not wait."""
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

    @property
    def _descriptor(self) -> int:
        """File descriptor of the open lock file."""
        assert self._file is not None, "the lock file is not open"
        return self._file

    def _open(self) -> bool | None:
        """Open the lock file, created if missing; for what is returned see :meth:`_flock`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self._file = _open(self.path, os.O_RDWR | os.O_CREAT)
                locked = self._flock()
                if not locked or self._in_place():  # else the file was removed before the flock
                    return locked
                os.close(self._file)
        except OSError as error:
            raise UserError(f"log.run_dir {self.run_dir} cannot be locked: {error}") from None

    def _flock(self) -> bool | None:
        """Return whether this process has the file's flock; None: the file system has none."""
        deadline = time.monotonic() + PROBED_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in NO_FLOCK:
                    return None
                if time.monotonic() > deadline:
                    return False
                time.sleep(PROBED_S / 20)
            else:
                return True

    def _watch(self, before: dict[str, Any], seconds: float) -> None:
        """Watch a holder that flock cannot tell of; refuse if it gives a sign of life."""
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
            self.check()
            with contextlib.suppress(OSError):
                self._write({**self._me, "beat": beat})

    def _mine(self) -> bool:
        try:
            current = _parse(os.pread(self._descriptor, LENGTH, 0)) if self._in_place() else None
        except OSError as error:
            # A file system that fails for a moment is no reason to end a run. But over NFS the open
            # file is stale (ESTALE) if the lock was removed or replaced elsewhere.
            return error.errno != errno.ESTALE
        return current is not None and current.get("token") == self._me["token"]

    def _in_place(self) -> bool:
        """Whether the open file is still the one at the path."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _write(self, content: dict[str, Any] | None) -> None:
        # One write of a fixed length, so that a reader never finds half a lock.
        text = json.dumps(content).ljust(LENGTH - 1) + "\n"
        assert len(text) == LENGTH, text
        os.pwrite(self._descriptor, text.encode(), 0)


def lock_path(run_dir: str | Path) -> Path:
    """Return the path of the lock, beside the run directory, where ``--fresh`` removes nothing."""
    real = Path(os.path.realpath(run_dir))  # one directory, one lock, whatever links lead to it
    return real.parent / f".{real.name}.lock"


def holder(run_dir: str | Path) -> dict[str, Any] | None:
    """Return who last wrote the lock without releasing it (host, pid, job, beat); maybe dead."""
    with _opened(run_dir) as file:
        return _parse(os.pread(file, LENGTH, 0)) if file is not None else None


def is_held(run_dir: str | Path) -> bool:
    """Return whether a process whose flock this host can see holds the lock now.

    Where the file system has no flock: whether a process of the holder's number is on this host.
    """
    with _opened(run_dir) as file:
        if file is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_FLOCK:
                return _runs_here(_parse(os.pread(file, LENGTH, 0)))
            return True
        return False


def _runs_here(other: dict[str, Any] | None) -> bool:
    if other is None or other.get("host") != socket.gethostname():
        return False
    return isinstance(other.get("pid"), int) and Process.of(other["pid"]) is not None


@contextlib.contextmanager
def _opened(run_dir: str | Path) -> Iterator[int | None]:
    """Open the lock of a run directory for reading; yield None if there is none to be read."""
    try:
        file = _open(lock_path(run_dir), os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)


def _open(path: Path, flags: int) -> int:
    """Open a lock file, but never the target of a link, a pipe or a device.

    Raises:
        OSError: there is a link or no regular file at ``path``, or it may not be opened.
    """
    try:
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "is a symbolic link", str(path)) from None
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "is not a regular file", str(path))


def _read(file: int, path: Path) -> dict[str, Any] | None:
    """Return what a lock file says of its last holder; None if it was released or never written.

    Raises:
        UserError: the file is not a lock.
    """
    content = os.pread(file, LENGTH, 0)
    if not content.strip(b"\0 \n"):  # a power failure may leave zeros
        return None
    last = _parse(content)
    if last is None and content.strip() != b"null":
        raise UserError(
            f"{path} is not a lock of ours; expected no file of that name beside log.run_dir"
        )
    return last


def _parse(content: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(content.decode(), "a lock")
    except (UserError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) and isinstance(value.get("token"), str) else None


def _name(other: dict[str, Any] | None) -> str:
    if not other:
        return "another process"
    job = f", job {other['job']}" if other.get("job") else ""
    return f"process {other.get('pid')} on {other.get('host')}{job}"
