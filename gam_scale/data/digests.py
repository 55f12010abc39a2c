"""Which documents a prepared set has, by hash: what later sets are deduplicated against."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gam_scale.data.manifest import read_manifest, sha256_of
from gam_scale.errors import UserError

DIGESTS_FILE = "digests.bin"
"""Beside the manifest of a set that was deduplicated: 16 bytes of each document, in their order."""


def digests_of(sets: Sequence[Path]) -> list[str]:
    """The sha256 of each set's digests, as its manifest has it.

    Raises:
        UserError: one is no prepared set, or was not deduplicated, so that it has none.
    """
    found = []
    for folder in sets:
        sha256 = read_manifest(folder).digests_sha256
        if sha256 is None:
            raise UserError(
                f"{folder}: was prepared without --deduplicate, so that it does not say which "
                "documents it has; expected a set that was prepared with it"
            )
        found.append(sha256)
    return found


def read_digests(sets: Sequence[Path]) -> np.ndarray:
    """Those of all ``sets``, (n, 2) uint64.

    Raises:
        UserError: as :func:`digests_of`; or the file is missing or not the one that was written.
    """
    read = [np.empty((0, 2), np.uint64)]
    for folder, sha256 in zip(sets, digests_of(sets), strict=True):
        path = folder / DIGESTS_FILE
        if sha256_of(path) != sha256:
            raise UserError(
                f"{path}: has changed since the set was prepared; copy it again from its source or "
                "prepare the set again"
            )
        read.append(np.fromfile(path, np.uint64).reshape(-1, 2))
    return np.concatenate(read)
