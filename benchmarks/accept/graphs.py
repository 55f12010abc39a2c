"""Check 3: number of graphs into which a block compiles, and causes of graph breaks."""

import time
from functools import partial

import torch
from torch._dynamo.utils import counters

from benchmarks.accept.fla import IMPLEMENTATIONS, installed
from benchmarks.accept.one_block import OneBlock
from benchmarks.accept.record import Check

GRAPHS = {"gam_1b": 1, "ctx16k": 2}
"""Expected graphs of a block. ctx16k's sequence has a first segment, and others that continue from
a state."""


def graphs(check: Check, name: str, implementation: str) -> None:
    """Compile one block by running two steps, and count its graphs."""
    torch._dynamo.reset()
    counters.clear()
    begun = time.monotonic()
    block = OneBlock(check, name, compiled=True, implementation=implementation)
    with installed(check):
        block.step()
        block.step()
    if check.device.type == "cuda":
        torch.cuda.synchronize(check.device)
    seconds = time.monotonic() - begun
    breaks, expected = counters["graph_break"], GRAPHS[name]
    found = counters["stats"]["unique_graphs"]
    check.figure("graphs", found, at_least=expected, at_most=expected)
    check.figure("breaks", sum(breaks.values()), at_most=0)
    for reason, times in breaks.items():
        check.note(f"break, {times} times", reason)
    check.figure("first two steps, with compiling", seconds, "s")


PARTS = {
    f"{name} {how}": partial(graphs, name=name, implementation=how)
    for name in GRAPHS
    for how in IMPLEMENTATIONS
}
