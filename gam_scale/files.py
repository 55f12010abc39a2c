"""Read ordinary files only; write files and folders so that they appear whole or not at all."""

import csv
import io
import json
import math
import os
import re
import resource
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from gam_scale.errors import UserError
from gam_scale.pulse import beat

CHECKSUMS = "checksums.json"
MOST_FILES = 1 << 16
"""Open files that one process is to be allowed."""


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class _Reading(io.FileIO):
    """A file open for reading; if its disk or server fails, a UserError names the file."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(_open(path, os.O_RDONLY, "read"))
        self.path = path

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise self._failed(error) from None

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be read: {error.strerror}")


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open an ordinary file to read its bytes; never waits, as opening a named pipe would.

    Raises:
        UserError: the file is missing, cannot be read, or is a folder, a pipe or a device. Later
            reads that fail raise it too.
    """
    return io.BufferedReader(_Reading(path))


def append_regular(path: str | Path) -> BinaryIO:
    """Open an ordinary file, made if need be, to append to; otherwise as :func:`open_regular`."""
    return os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, "written"), "ab")


def _open(path: str | Path, flags: int, done: str) -> int:
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        mode = os.fstat(handle).st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be {done}: {error.strerror}") from None
    except ValueError:  # a name with a NUL character or half of a surrogate pair
        raise UserError(f"{ascii(str(path))} is not a file name") from None
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise _no_file(path, mode)
    return handle


def _no_file(path: str | Path, mode: int) -> UserError:
    kind = next((name for test, name in _KINDS if test(mode)), "no ordinary file")
    return UserError(f"{path} is {kind}; expected a file")


def read_regular(path: str | Path, most: int | None = None) -> bytes:
    """Return the content of an ordinary file, opened by :func:`open_regular`.

    Args:
        path: of the file.
        most: the most bytes that the file may have, else a UserError; None: any number.
    """
    with open_regular(path) as file:
        content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes; expected at most that")
    return content


def write_bytes(path: str | Path, data: bytes, *, synced: bool = True) -> None:
    """Write a file so that no reader, and no crash, ever finds half of it at ``path``.

    Args:
        path: of the file, which may exist.
        data: all of it.
        synced: wait for the disk, so that a power failure too, not only a kill of this process,
            leaves either the earlier file or this one.

    Raises:
        UserError: a folder, a pipe or a device is at ``path``, which the file would replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise _no_file(path, path.stat().st_mode)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        put_in_place(partial, path, synced=synced)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def put_in_place(
    partial: Path, final: Path, *, synced: bool = True, on_disk: Collection[str] = ()
) -> None:
    """Move a whole file or folder to ``final``, in one rename.

    A file replaces a file that is there; a folder replaces only an empty folder.

    Args:
        partial: where it was written, on the same disk.
        final: where it is to be.
        synced: wait until the content is on the disk before the rename, and a folder's name after.
        on_disk: names of the folder's files that are on the disk already.
    """
    if synced:
        for path in partial.rglob("*"):
            if path.name not in on_disk:
                sync(path)
        sync(partial)
    os.replace(partial, final)
    if synced and final.is_dir():
        sync(final.parent)


def is_leftover(path: Path) -> bool:
    """Whether a killed :func:`write_bytes` can have left this file behind."""
    return re.fullmatch(r"\..+\.\d+\.tmp", path.name) is not None and path.is_file()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed :func:`write_bytes` left in a folder that only this process writes to."""
    for path in filter(is_leftover, folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON, by :func:`write_bytes`.

    A number that is not finite is written as Python reads it again, for checkpoints. What others
    read too is made by :func:`finite` first.
    """
    write_bytes(path, json_bytes(value, indent))


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """Return a value as JSON and a line break; on one line (no ``indent``) ten times as fast."""
    return (json.dumps(value, indent=indent) + "\n").encode()


def finite(value: Any) -> Any:
    """Return a JSON value with null for each number that is not finite, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite_line(value: Any) -> str:
    """Return a value as one line of JSON that any program can read; see :func:`finite`."""
    return json.dumps(finite(value), allow_nan=False) + "\n"


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Return a CSV file's content."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def csv_of_dicts(rows: Sequence[Mapping[str, object]]) -> bytes:
    """Return a CSV file's content with a column for every key, empty where a row lacks the key."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    return csv_bytes(header, ([row.get(key, "") for key in header] for row in rows))


def partial_folder(final: Path) -> Path:
    """Make a new, empty folder to fill, which :func:`publish` renames to ``final``."""
    partial = partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def partial_path(final: Path) -> Path:
    """Return the path at which ``final`` is prepared."""
    return final.with_name(f".{final.name}.partial")


def publish(final: Path, checksums: dict[str, str]) -> None:
    """Add a checksum of every file to the filled partial folder, and rename it to ``final``.

    Args:
        final: must not exist.
        checksums: by name, of files whose writers know them already and have synced the files to
            the disk: the largest files, perhaps written by many hosts.
    """
    partial, on_disk = partial_path(final), checksums.keys()
    for file in sorted(partial.iterdir()):
        if file.name not in checksums:
            checksums = checksums | {file.name: checksum(file)}
    sealed = {"format": 2, "files": checksums, "seal": seal(checksums)}
    write_json(partial / CHECKSUMS, sealed)
    put_in_place(partial, final, on_disk=on_disk)


def seal(checksums: Mapping[str, str]) -> str:
    """Return the checksum of a list of checksums."""
    return xxhash.xxh3_128_hexdigest(json.dumps(dict(checksums), sort_keys=True).encode())


def checksum(path: Path) -> str:
    """Return the xxh3_128 of a file, in hex."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
            beat()
    return digest.hexdigest()


def allow_many_files() -> None:
    """Raise this process's limit on open files, often 1,024, as far as the system allows.

    A checkpoint of a thousand ranks has as many files, and a rank as many connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):  # a system whose real limit is lower, such as macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def sync(path: Path) -> None:
    """Have the system write a file or folder to disk, and wait for it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
