"""metrics.jsonl: writing the lines that a run logs, and reading them even after a kill."""

import json
import logging
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

from gam_scale.errors import UserError
from gam_scale.files import read_regular, write_bytes
from gam_scale.strict import parse_json

logger = logging.getLogger("gam_scale")

Line = dict[str, Any]
"""One logged line: its ``step``, and other numbers by name."""


class JsonLines:
    """Writes metrics.jsonl: one JSON object per line, null for a number that is not finite.

    Lines past ``resume_step`` are dropped. Rows that cannot be read go to metrics.unreadable, but
    for the last one, which a kill may have cut short. A file that has nothing to drop stays as it
    is, however long it has become.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        lines, unreadable = rows_of(path, _line)
        keep_aside(path, unreadable)
        kept = [line for line in lines if 0 < line["step"] <= resume_step]
        wanted = "".join(map(_json_line, kept)).encode()
        if path.exists() and read_regular(path) != wanted:
            write_bytes(path, wanted)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, line: Line) -> None:
        self._file.write(_json_line(line))
        self._file.flush()

    def sync(self) -> None:
        """Wait until the disk has all lines, so that a power failure too leaves them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[Line]:
    """Return the readable lines of a metrics.jsonl; none if the file is missing."""
    lines, unreadable = rows_of(Path(path), _line)
    if unreadable:
        _warn_of_unreadable(path, len(unreadable))
    return lines


def rows_of(path: Path, read: Callable[[bytes], Line | None]) -> tuple[list[Line], list[bytes]]:
    """Return what ``read`` makes of a file's rows, and the rows for which it returns None.

    Both are empty if the file is missing. A last row that a kill or a power failure has cut short
    is in neither.
    """
    if not path.exists():
        return [], []
    *whole, last = read_regular(path).split(b"\n")
    parsed = [(row, read(row)) for row in whole if row.strip()]
    lines = [line for _, line in parsed if line is not None]
    end = read(last)
    return [*lines, *([] if end is None else [end])], [row for row, line in parsed if line is None]


def of_a_step(row: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a row if it has a ``step``, else None."""
    try:
        content = parse_json(row.decode("utf-8"), "a row")
    except (UserError, UnicodeDecodeError):
        return None
    return content if isinstance(content, dict) and type(content.get("step")) is int else None


def _line(row: bytes) -> Line | None:
    line = of_a_step(row)
    if line is None:
        return None
    return line if all(type(v) in (int, float, NoneType) for v in line.values()) else None


def keep_aside(file: Path, rows: list[bytes]) -> None:
    """Add unreadable rows to the file beside ``file`` that keeps them."""
    if not rows:
        return
    path = file.with_suffix(".unreadable")
    before = read_regular(path).splitlines() if path.exists() else []
    write_bytes(path, b"".join(row + b"\n" for row in dict.fromkeys([*before, *rows])))
    said = "%d rows of %s cannot be read and are kept in %s"
    logger.warning(said, len(rows), file.name, path)


@cache
def _warn_of_unreadable(path: str | Path, rows: int) -> None:
    logger.warning("%s: %d rows cannot be read; the others are taken", path, rows)


def _json_line(line: Line) -> str:
    finite = {k: v if is_known_and_finite(v) else None for k, v in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def is_known_and_finite(value: Any) -> bool:
    """Return whether a value is known and finite; anything that is no float counts as finite."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
