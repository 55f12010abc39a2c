"""Run the command lines as a user does, in this process or in one of their own."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def tool(capsys, run_tool) -> Callable[..., Done]:
    """``tool("pretrain", "--config", ...)``: exit status and output of tools/pretrain.py."""

    def run(name: str, *arguments: object) -> Done:
        capsys.readouterr()
        return Done(run_tool(name, *arguments), *capsys.readouterr())

    return run
