"""Files that are whole or absent: atomic writes, checksums, folders that appear by one rename."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from gam_scale.errors import UserError

CHECKSUMS = "checksums.json"


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file so that no reader, and no crash, ever finds half of it at ``path``."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """:func:`write_bytes` for JSON."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``final`` in one rename at the end.

    Every file is synced to disk and its checksum recorded before the rename. If the body raises,
    nothing is left behind.
    """
    temporary = final.with_name(f".{final.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sums = {file.name: checksum(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / CHECKSUMS, sums)
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        os.rename(temporary, final)  # refused by the system where `final` exists already
        _sync(final.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def verify_folder(folder: Path) -> None:
    """Check every file of a folder against its recorded checksum.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {CHECKSUMS}")
    for name, expected in json.loads(sums.read_text()).items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; the checkpoint cannot be loaded")
        if checksum(folder / name) != expected:
            raise UserError(
                f"{folder / name} differs from what was saved (its checksum does not match)"
            )


def checksum(path: Path) -> str:
    """The xxh3_128 of a file, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
