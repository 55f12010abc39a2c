"""Files by which the processes of a preparation tell each other what is done: whole, or absent."""

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
    """What :func:`save_arrays` wrote, or those of it."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in names or file.files}


def done_file(folder: Path, item: str) -> Path:
    """Says, once it is there, that ``item`` of a stage is done, and what came of it."""
    return folder / f"{item}.json"


def done_items(folder: Path) -> set[str]:
    """What is done of a stage."""
    return {p.stem for p in folder.glob("*.json") if not p.name.startswith(".")}


def outcome(folder: Path, item: str) -> dict[str, Any]:
    """What came of an item that is done."""
    return read_json(done_file(folder, item))


def unfinished(path: Path) -> Path:
    """Where this process writes ``path``: a started-again task may have a twin that lives on."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")
