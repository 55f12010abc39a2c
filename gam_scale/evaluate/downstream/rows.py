"""Questions of a task from a file of JSON lines."""

import json
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.files import read_regular
from gam_scale.strict import is_text, parse_json, shown


def read_items(path: Path, most: int = 0) -> list[tuple[dict[str, Any], str]]:
    """Read the first ``most`` objects (0: all) of a JSON lines file, each with its file and line.

    Raises:
        UserError: the file cannot be read, a line is no object, or the file has none.
    """
    try:
        lines = read_regular(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); expected JSON lines") from None
    found: list[tuple[dict[str, Any], str]] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not (most and len(found) == most):
            row, where = parse_json(line, str(path), number), f"{path}: line {number}"
            if not isinstance(row, dict):
                raise UserError(f"{where} is {shown(row)}; expected an object")
            if not is_text(json.dumps(row, ensure_ascii=False)):
                raise UserError(f"{where} has half of a character; expected text")
            found.append((row, where))
    if not found:
        raise UserError(f"{path} has no question; expected JSON lines")
    return found
