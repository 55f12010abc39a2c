"""Run the tools as a user does on the command line, but inside the tests' process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def tool(capsys, run_tool) -> Callable[..., Done]:
    """Return ``tool("pretrain", ...)``, which runs tools/pretrain.py and returns a ``Done``."""

    def run(name: str, *arguments: object) -> Done:
        capsys.readouterr()
        return Done(run_tool(name, *arguments), *capsys.readouterr())

    return run
