"""Inductor's graphs of a block, the kernels that it schedules, and the bytes that they move."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._inductor import compile_fx, ir, memory, scheduler
from torch._inductor.graph import GraphLowering
from torch.utils._ordered_set import OrderedSet

from benchmarks.fake_cuda.interpreted import interpreted

FUSED = "fused loops"
"""Name of every kernel that inductor writes itself, in Triton."""


@dataclass(frozen=True)
class Kernel:
    """One launch, or one call of an operator that inductor does not write."""

    name: str  # FUSED, or the operator's
    read_and_written: int  # bytes, each buffer once: the least that a good kernel moves


@dataclass(frozen=True)
class Graph:
    """One compiled graph."""

    is_backward: bool
    module: fx.GraphModule  # what inductor was given
    kernels: list[Kernel]
    peak: int  # bytes at its fullest moment, inputs that it may free included

    def kept(self) -> int:
        """Return the bytes that a backward graph gets from the forward graph, inputs aside."""
        nodes = self.module.graph.find_nodes(op="placeholder")
        return sum(_bytes(n) for n in nodes if not n.name.startswith(("primals", "tangents")))

    def returned(self, shapes: set[torch.Size]) -> int:
        """Return the bytes of the graph's results that have one of these shapes."""
        (output,) = self.module.graph.find_nodes(op="output")
        nodes = {n for n in output.args[0] if isinstance(n, fx.Node)}
        return sum(_bytes(n) for n in nodes if n.meta["val"].shape in shapes)


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.nbytes if isinstance(value, Tensor) else 0


class Compiler:
    """Backend for torch.compile that keeps what inductor would run, and runs the graph itself.

    Attributes:
        graphs: in the order in which they were compiled.
    """

    def __init__(self) -> None:
        self.graphs: list[Graph] = []

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        """See ``backend`` of torch.compile."""
        compiled: Any = compile_fx.compile_fx(module, inputs, inner_compile=self._inner)
        return compiled

    def _inner(self, module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        before = copy.deepcopy(module)  # inductor rewrites it
        kernels, peak = _scheduled(module, inputs, options)
        is_backward = bool(options.get("is_backward", False))
        self.graphs.append(Graph(is_backward, before, kernels, peak))
        return interpreted(before)


class _Scheduled(Exception):  # noqa: N818 (no error: the way out of inductor)
    """Raised when inductor has done all that it does before it writes and compiles code."""

    def __init__(self, kernels: list[Kernel], peak: int) -> None:
        self.kernels, self.peak = kernels, peak


def _stop(lowering: GraphLowering) -> None:
    lowering.init_wrapper_code()
    lowering._update_scheduler()
    raise _Scheduled(_kernels(lowering.scheduler.nodes), _peak(lowering))


def _scheduled(
    module: fx.GraphModule, inputs: Sequence[Any], options: dict[str, Any]
) -> tuple[list[Kernel], int]:
    """Return the kernels that inductor would run for this graph, and its peak in bytes."""
    try:
        with patch.object(GraphLowering, "compile_to_module", _stop):
            compile_fx.compile_fx_inner(module, inputs, **options)
    except Exception as error:
        found: BaseException | None = error
        while found is not None and not isinstance(found, _Scheduled):
            found = found.__cause__ or found.__context__  # inductor wraps what it catches
        if found is None:
            raise
        return found.kernels, found.peak
    raise AssertionError("inductor was not to finish")


def _kernels(nodes: Sequence[scheduler.BaseSchedulerNode]) -> list[Kernel]:
    found = []
    for node in nodes:
        is_extern = isinstance(node, scheduler.ExternKernelSchedulerNode)
        if isinstance(node, scheduler.NopKernelSchedulerNode):
            continue
        if is_extern and isinstance(node.node, ir.MultiOutput):
            continue  # one of several results of the call before
        name = _name(node.node) if is_extern else FUSED
        found.append(Kernel(name, node.get_read_write_buffers_sizes()))
    return found


def _name(node: Any) -> str:
    overload = getattr(node, "op_overload", None)
    if isinstance(overload, torch._ops.OpOverload):
        return str(overload.overloadpacket).removeprefix("aten.")
    name = getattr(node, "python_kernel_name", None) or type(node).__name__
    return str(name).removeprefix("extern_kernels.")


def _peak(lowering: GraphLowering) -> int:
    """Return the peak in bytes by inductor's own account, in the order that it chose."""
    planned = lowering.scheduler
    peak, _ = memory.prepare_planning_info(
        planned.nodes,
        planned.name_to_buf,
        planned.name_to_fused_node,
        OrderedSet(lowering.graph_inputs),
        OrderedSet(lowering.get_output_names()),
    )
    return peak
