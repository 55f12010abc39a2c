"""Check 9: dtypes of a block's operators, here and on the fake H100 of the tests."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import fx
from torch._inductor import compile_fx

from benchmarks.accept.one_block import REAL, Maker, OneBlock
from benchmarks.accept.record import Check
from benchmarks.fake_cuda.dtypes import nodes
from benchmarks.fake_cuda.interpreted import interpreted
from gam_scale.model.parts import implementations
from gam_scale.strict import read_json

EXPECTED = Path(__file__).with_name("precisions.json")
"""The dtypes on a fake H100, made by ``python -m benchmarks.accept.fake_precisions``."""
KINDS = tuple(implementations())
SHORT = ("data.seq_len=256", "model.max_seq_len=256")
SHOWN = 8
"""Most differences that are recorded."""

Places = dict[str, list[str]]


def places(check: Check, kind: str, maker: Maker = REAL) -> Places:
    """Return by pass, module and operator the dtypes taken and given, every pair once.

    Graphs are traced and decomposed as for inductor, then run as they are. ``maker`` makes the
    block's tensors.
    """
    graphs: list[fx.GraphModule] = []
    layers = f'model.layers=["{kind}"]'
    backend = _noting(graphs)
    block = OneBlock(check, "gam_1b", *SHORT, layers, compiled=True, backend=backend, maker=maker)
    block.step()
    found: Places = {}
    for node in nodes(graphs):
        place = " ".join(["backward" if node.backward else "forward", node.module, node.operator])
        found.setdefault(place, []).append(f"{node.taken} -> {node.given}")
    return {place: sorted(dtypes) for place, dtypes in sorted(found.items())}


def _noting(graphs: list[fx.GraphModule]) -> Callable[..., Any]:
    def inner(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        graph = copy.deepcopy(module)
        graphs.append(graph)
        return interpreted(graph)

    return partial(compile_fx.compile_fx, inner_compile=inner)


def compare(check: Check, kind: str) -> None:
    """Count the places that are both here and expected, and those that differ: 0 on a GPU.

    On a CPU they may differ, since its autocast does. Places may be in one only, since another
    torch may decompose operators otherwise.
    """
    kept = read_json(EXPECTED)
    found, expected = places(check, kind), kept["places"][kind]
    both = found.keys() & expected.keys()
    other = sorted(place for place in both if found[place] != expected[place])
    check.note("expected by torch", kept["torch"])
    check.figure("places compared", len(both), at_least=5)
    check.figure("places in one only", len(found.keys() ^ expected.keys()))
    check.figure("places that differ", len(other), at_most=check.pick(0, None))
    for place in other[: check.pick(SHOWN, 0)]:
        check.note(place, f"{found[place]}, expected {expected[place]}")


PARTS = {kind: partial(compare, kind=kind) for kind in KINDS}
