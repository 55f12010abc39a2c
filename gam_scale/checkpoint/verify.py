"""Verify that a checkpoint is what was saved: every file that it needs, to the bit.

``checksums.json`` lists each file's checksum and, since format 2, the list's own checksum. A file
that is not in the list is never read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gam_scale.checkpoint.index import FILE_NAME, INDEX, open_tensors, read_index
from gam_scale.errors import UserError
from gam_scale.files import CHECKSUMS, checksum, seal
from gam_scale.strict import from_dict, read_json, shown

STATE, CONFIG, TOKENIZER = "state.json", "config.json", "tokenizer.model"


@dataclass
class _Listed:
    files: dict[str, str]


@dataclass
class _Sealed(_Listed):
    format: Literal[2]
    seal: str


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of a checkpoint, by the file's name.

    Raises:
        UserError: ``folder`` is no checkpoint, or the list is damaged.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {CHECKSUMS}")
    data = read_json(path)
    try:
        if isinstance(data, dict) and "seal" not in data:  # format 1 was the list alone
            files = from_dict(_Listed, {"files": data}).files
        else:
            sums = from_dict(_Sealed, data)
            files = sums.files if sums.seal == seal(sums.files) else None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if files is None:
        raise UserError(f"{path} differs from what was saved (its own checksum does not match)")
    for name in files:
        if not FILE_NAME.fullmatch(name):
            raise UserError(f"{path}: {shown(name)} is no name of a file in a checkpoint")
    return files


def verify_checkpoint(folder: Path, part: int = 0, n_parts: int = 1) -> None:
    """Check that every file that a checkpoint needs is there and is what was saved.

    Args:
        folder: the checkpoint's folder.
        part: which of ``n_parts`` shares of the files to check, so that ranks can divide them.
        n_parts: how many shares there are.

    Raises:
        UserError: naming the first file that is missing or differs.
    """
    sums = read_checksums(folder)
    _check_listed(folder, INDEX, sums)
    check_file(folder, INDEX, sums)
    tensors = read_index(folder).files()
    for name in (STATE, CONFIG, TOKENIZER, *tensors):
        _check_listed(folder, name, sums)
    for name in sorted(sums)[part::n_parts]:
        check_file(folder, name, sums)
        if name in tensors:
            open_tensors(folder / name, tensors[name])[0].close()


def _check_listed(folder: Path, name: str, sums: dict[str, str]) -> None:
    if name not in sums:
        raise UserError(
            f"{folder / CHECKSUMS} does not list {name}; expected every file that is needed"
        )


def check_file(folder: Path, name: str, sums: dict[str, str]) -> None:
    """Check that one file is what was saved.

    Raises:
        UserError: the file is missing, or differs.
    """
    if not (folder / name).exists():
        raise UserError(f"{folder / name} is missing; the checkpoint cannot be loaded")
    if checksum(folder / name) != sums[name]:
        raise UserError(
            f"{folder / name} differs from what was saved (its checksum does not match)"
        )
