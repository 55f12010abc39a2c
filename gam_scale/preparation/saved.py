"""Files, whole or absent, by which processes of a preparation tell each other what is done."""

import io
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.files import write_bytes
from gam_scale.strict import read_json


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write an ``.npz`` in one step."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def load_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Read the arrays that :func:`save_arrays` wrote: those of ``names``, or all of them."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names or file.files}


def done_file(folder: Path, item: str) -> Path:
    """Return the file that, once it exists, says that ``item`` is done, and holds its outcome."""
    return folder / f"{item}.json"


def done_items(folder: Path) -> set[str]:
    """Return the items of a stage that are done."""
    return {p.stem for p in folder.glob("*.json") if not p.name.startswith(".")}


def outcome(folder: Path, item: str) -> dict[str, Any]:
    """Return the outcome of an item that is done."""
    return read_json(done_file(folder, item))


def unfinished(path: Path) -> Path:
    """Return the temporary file in which this process alone writes ``path``.

    When a task is started again, its earlier process may still be writing.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
