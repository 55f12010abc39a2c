"""metrics.jsonl: the lines that a run logs, and how they are read whatever a kill did to them."""

import json
import logging
import math
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
    """metrics.jsonl: one JSON object per line, null where a number is not finite.

    Rows that are no such line, which no kill leaves but at the end, go to metrics.unreadable.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        lines, unreadable = rows_of(path, _line)
        keep_aside(path, unreadable)
        kept = [line for line in lines if 0 < line["step"] <= resume_step]
        write_bytes(path, "".join(map(_json_line, kept)).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, line: Line) -> None:
        self._file.write(_json_line(line))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: str | Path) -> list[Line]:
    """The lines of a metrics.jsonl: none if it is missing, and none that a kill cut short."""
    lines, unreadable = rows_of(Path(path), _line)
    if unreadable:
        _warn_of_unreadable(path, len(unreadable))
    return lines


def rows_of(path: Path, read: Callable[[bytes], Line | None]) -> tuple[list[Line], list[bytes]]:
    """What ``read`` makes of a file's rows, none where it is missing, and those it makes none of.

    A kill, or a power failure, cuts the last row short; that one is neither.
    """
    if not path.exists():
        return [], []
    *whole, last = read_regular(path).split(b"\n")
    parsed = [(row, read(row)) for row in whole if row.strip()]
    lines = [line for _, line in parsed if line is not None]
    end = read(last)
    return [*lines, *([] if end is None else [end])], [row for row, line in parsed if line is None]


def of_a_step(row: bytes) -> dict[str, Any] | None:
    """The object that a row holds, if it says of which step it is."""
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
    """Add rows that cannot be read to what is kept of them beside ``file``."""
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
    finite = {k: v if is_finite(v) else None for k, v in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def is_finite(value: Any) -> bool:
    """Whether strict JSON can hold it; anything but a number can be."""
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
