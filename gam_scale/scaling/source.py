"""The files that the runs of a report were read from, and what a forecast notes of them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gam_scale.files import read_regular
from gam_scale.scaling.points import Points

FITTED_COLUMNS = ("runs_sha256", "largest_params", "largest_tokens", "largest_flops")
"""Columns of extrapolation.csv on the runs that a family's law was fitted to."""
MADE_COLUMNS = ("code_version", "made")
"""Columns on the making of a forecast: commit of the code, and when (UTC)."""


@dataclass(frozen=True)
class Source:
    """Names and SHA-256 of CSV files."""

    files: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Source":
        """Read the files for their hashes."""
        return cls(tuple((p.name, hashlib.sha256(read_regular(p)).hexdigest()) for p in paths))

    def __str__(self) -> str:
        """Return how a report names the files."""
        return ", ".join(f"{name} (sha256 {digest[:16]})" for name, digest in self.files)

    def fitted(self, points: Points) -> list[object]:
        """Return the :data:`FITTED_COLUMNS` of a law of ``points``, one family's fitted runs."""
        digests = " ".join(digest for _, digest in self.files)
        return [digests, *(float(c.max()) for c in (points.params, points.tokens, points.flops))]
