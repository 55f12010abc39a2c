"""Hashes of a prepared set's documents, against which later sets are deduplicated."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gam_scale.data.manifest import read_manifest, sha256_of
from gam_scale.errors import UserError

DIGESTS_FILE = "digests.bin"
"""A file beside a deduplicated set's manifest: a 16-byte hash of each document, in order."""


def digests_of(sets: Sequence[Path]) -> list[str]:
    """Return the SHA-256 of each set's digests file, as its manifest records it.

    Raises:
        UserError: a folder is no prepared set, or its set was not deduplicated and has no digests.
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
    """Return the digests of all ``sets``, (n, 2) uint64.

    Raises:
        UserError: as :func:`digests_of`; or a digests file is missing or has changed.
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
