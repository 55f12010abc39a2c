"""Graphs of a compiler, run operator by operator instead of compiled."""

from collections.abc import Callable
from typing import Any

from torch import fx


def interpreted(graph: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """Runs ``graph``; like compiled code it lets go of its arguments, which come in one list."""

    def run(args: list[Any]) -> Any:
        taken = list(args)
        args.clear()
        return fx.Interpreter(graph).run(*taken)

    run._boxed_call = True  # type: ignore[attr-defined]  # what torch looks for
    return run
