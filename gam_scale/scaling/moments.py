"""Moments in CSV files: UTC to the second, so that a forecast and its run can be put in order."""

from datetime import UTC, datetime
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.strict import shown

FORM = "%Y-%m-%dT%H:%M:%SZ"


def moment(seconds: float) -> str:
    """Return seconds since 1970 as text, such as ``2026-11-28T04:00:00Z``; such texts sort."""
    return datetime.fromtimestamp(seconds, UTC).strftime(FORM)


def read_moment(path: str | Path, line: int, name: str, text: str | None) -> str:
    """Return a CSV cell that holds a moment; empty if it is empty or not there.

    Raises:
        UserError: the cell is something else; the message says where it is.
    """
    text = (text or "").strip()
    if not text:
        return ""
    try:
        return datetime.strptime(text, FORM).strftime(FORM)
    except ValueError:
        raise UserError(
            f"{path}: line {line}, column {name} is {shown(text)}; expected a time in UTC, such as "
            "2026-11-28T04:00:00Z"
        ) from None
