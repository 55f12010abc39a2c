"""Dtypes in which the operators of a block compute, on a fake device or a real one."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._inductor import compile_fx


class Node(NamedTuple):
    """One sort of operator: in which pass and module, and which dtypes it takes and gives."""

    backward: bool  # part of the backward pass; what that pass recomputes counts as forward
    module: str  # its path within the block: memory.gate.strength
    operator: str
    taken: str  # dtypes of the tensors it reads: float32 bfloat16
    given: str


def recorder(graphs: list[fx.GraphModule]) -> Callable[..., Any]:
    """Make a backend for torch.compile: inductor, with every graph it gets added to ``graphs``."""

    def inner(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        graphs.append(copy.deepcopy(module))  # inductor rewrites it
        return compile_fx.compile_fx_inner(module, inputs, **options)

    return partial(compile_fx.compile_fx, inner_compile=inner)


def nodes(graphs: Sequence[fx.GraphModule]) -> Counter[Node]:
    """Count all operators of a block's graphs, except for views and casts."""
    found: Counter[Node] = Counter()
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                found[_described(node)] += not _only_moves(node.target)
    return +found


def _only_moves(operator: torch._ops.OpOverload) -> bool:
    returns = operator._schema.returns
    is_view = bool(returns) and returns[0].alias_info is not None
    return is_view or operator is torch.ops.prims.convert_element_type.default


def _operator(node: fx.Node) -> torch._ops.OpOverload:
    assert isinstance(node.target, torch._ops.OpOverload), node
    return node.target


def _described(node: fx.Node) -> Node:
    backward = "fwd_nn_module_stack" in node.meta
    stack = node.meta.get("fwd_nn_module_stack") or node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return Node(
        backward,
        paths[-1].rpartition("__self__")[2].strip(".") if paths else "",
        str(_operator(node).overloadpacket).removeprefix("aten."),
        _dtypes([n.meta.get("val") for n in node.all_input_nodes]),
        _dtypes([node.meta.get("val")]),
    )


def _dtypes(values: Sequence[object]) -> str:
    tensors: list[Tensor] = []
    for value in values:
        parts = value if isinstance(value, tuple | list) else [value]
        tensors += [part for part in parts if isinstance(part, Tensor)]
    return " ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
