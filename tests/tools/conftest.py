"""Run the command lines as a user does, in this process or in one of their own."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def tool(capsys, monkeypatch) -> Callable[..., Done]:
    """``tool("pretrain", "--config", ...)``: exit status and output of tools/pretrain.py."""

    def run(name: str, *arguments: object) -> Done:
        path = str(ROOT / "tools" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(path, run_name="__main__")
        return Done(caught.value.code or 0, *capsys.readouterr())

    return run
