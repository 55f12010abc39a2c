"""Running of a compiler's graphs operator by operator, instead of compiling them."""

from collections.abc import Callable
from typing import Any

from torch import fx


def interpreted(graph: fx.GraphModule) -> Callable[[list[Any]], Any]:
    """Return a function that runs ``graph`` on a list, which it empties as compiled code does."""

    def run(args: list[Any]) -> Any:
        taken = list(args)
        args.clear()
        return fx.Interpreter(graph).run(*taken)

    run._boxed_call = True  # type: ignore[attr-defined]  # what torch looks for
    return run
