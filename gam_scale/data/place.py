"""Build a prepared set in a hidden folder beside its place, and move it there as a whole."""

import errno
import glob
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from gam_scale.data.manifest import MANIFEST_FILE, Manifest, read_manifest, verify_files
from gam_scale.errors import UserError
from gam_scale.files import put_in_place

OLD_SUFFIX = "-old"
SILENT_S = 7 * 86400.0  # another host's process that has written nothing for so long is dead


def may_write(out: Path, overwrite: bool) -> bool:
    """Return whether a set may be written to ``out``: it is free, or its set may be replaced.

    Raises:
        UserError: ``out`` holds something other than a prepared set.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return True
    if not (out / MANIFEST_FILE).exists():
        raise UserError(
            f"{out}: exists and is not a prepared set; expected --out to be a new folder"
        )
    return overwrite


def verified_manifest(out: Path, source: dict[str, Any]) -> Manifest:
    """Return the manifest of the set at ``out``, after a check of its origin and its files.

    Raises:
        UserError: the set was made from something other than ``source``, or a file has changed.
    """
    manifest = read_manifest(out)
    if manifest.source != source:
        raise UserError(
            f"{out}: was prepared from other inputs or settings; expected another --out, or "
            "--overwrite to replace it"
        )
    verify_files(out, manifest, hashes=False)
    return manifest


@contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside ``out`` and remove it at the end, unless it was renamed."""
    work = out.with_name(f"{_leftover_prefix(out)}{os.getpid()}")
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be made ({error.strerror}); expected --out in a folder that can be "
            "written to"
        ) from None
    try:
        yield work
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{out.parent}: no space left on the disk; free some or choose another --out"
        ) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def place(work: Path, out: Path, overwrite: bool) -> None:
    """Rename ``work`` to ``out``; an earlier set is removed once the new one is in place."""
    old = work.with_name(work.name + OLD_SUFFIX)
    if overwrite and out.exists():
        os.rename(out, old)
    try:
        put_in_place(work, out)  # onto nothing, or onto an empty folder
    except OSError as error:
        if old.exists():
            os.rename(old, out)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UserError(f"{out}: another process has made it meanwhile") from None
    shutil.rmtree(old, ignore_errors=True)


def clear_leftovers(out: Path) -> None:
    """Remove what killed runs left beside ``out``.

    If a run was killed between moving the earlier set away and placing the new one, the earlier set
    is moved back.
    """
    prefix = f".{out.name}.partial-"
    for path in out.parent.glob(f"{glob.escape(prefix)}*"):
        host, _, pid = path.name.removeprefix(prefix).removesuffix(OLD_SUFFIX).rpartition("-")
        if not host or not pid.isdigit() or _is_at_work(path, host, int(pid)):
            continue
        if path.name.endswith(OLD_SUFFIX) and not out.exists():
            os.rename(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_at_work(folder: Path, host: str, pid: int) -> bool:
    """Return whether the process that made ``folder`` may be alive."""
    if host == socket.gethostname():
        return _is_other_process(pid)
    # On a shared disk, the folder's process may run on another machine, where its id cannot be
    # looked up; if it is alive, it has written something lately.
    try:
        newest = max(path.lstat().st_ctime for path in (folder, *folder.rglob("*")))
    except FileNotFoundError:  # a file vanished meanwhile: the process is at work
        return True
    return time.time() - newest < SILENT_S


def _leftover_prefix(out: Path) -> str:
    return f".{out.name}.partial-{socket.gethostname()}-"


def _is_other_process(pid: int) -> bool:
    return pid != os.getpid() and psutil.pid_exists(pid)  # a new container reuses ids
