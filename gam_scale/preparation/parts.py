"""Cut sources into parts for processes to read, the same parts for any number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gam_scale.data.prepare import PrepareSpec
from gam_scale.data.rows import LeftOut
from gam_scale.data.sources import FileSource, HubSource, Source
from gam_scale.data.tokens import TokenSource
from gam_scale.errors import UserError

PART_BYTES = 1 << 28  # of the files of a part, which stay whole


@dataclass(frozen=True)
class Part:
    """Consecutive documents of one of the sources of a split.

    ``account`` is the source's ``describe()`` from when the preparation began. ``bytes`` is about
    the size of its files or text, or 0 if that is unknown.
    """

    number: int
    split: str
    source: Source
    account: dict[str, Any]
    bytes: int

    def check(self) -> None:
        """Refuse a source that has changed since the preparation began."""
        if self.source.describe() != self.account:
            files = getattr(self.source, "files", getattr(self.source, "paths", ()))
            name = f"{files[0]} or one of the {len(files)} files from it on" if files else "source"
            raise UserError(
                f"{name} has changed since the preparation began; expected sources that stay as "
                "they are, or --overwrite to begin anew"
            )


def cut_up(spec: PrepareSpec) -> list[Part]:
    """Return all parts, in the order in which a preparation by one process reads them."""
    splits = {"train": spec.train, "valid": spec.valid, "test": spec.test}
    pieces = [
        (split, piece, size)
        for split, sources in splits.items()
        for source in sources
        for piece, size in _pieces(source)
    ]
    return [
        Part(number, split, piece, piece.describe(), size)
        for number, (split, piece, size) in enumerate(pieces)
    ]


def _pieces(source: Source) -> list[tuple[Source, int]]:
    """Return sources that one after another give the documents of ``source``, and their bytes."""
    if isinstance(source, FileSource):
        return [
            (replace(source, files=files, left_out=LeftOut()), size)
            for files, size in _groups(source.files)
        ]
    if isinstance(source, TokenSource):
        return [
            (replace(source, paths=paths, left_out=LeftOut()), size)
            for paths, size in _groups(source.paths)
        ]
    if isinstance(source, HubSource):
        return [(piece, 0) for piece in source.pieces()]
    return [(source, source.text_bytes or 0)]


def _groups(paths: Sequence[Path]) -> list[tuple[tuple[Path, ...], int]]:
    """Group consecutive files up to :data:`PART_BYTES`; a larger file is a group of its own."""
    groups: list[tuple[tuple[Path, ...], int]] = []
    held: list[Path] = []
    total = 0
    for path in paths:
        size = _size(path)
        if held and total + size > PART_BYTES:
            groups.append((tuple(held), total))
            held, total = [], 0
        held.append(path)
        total += size
    return [*groups, (tuple(held), total)] if held else groups


def _size(path: Path) -> int:
    if path.is_dir():  # of MDS shards
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
