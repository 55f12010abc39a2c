"""Memory of a compiled block, from its graphs as torch cuts them and a factor for inductor's peak.

The graphs are those that the compiler would get, and so is what the forward graph keeps for the
backward graph. What the backward graph needs beyond that depends on which of its values inductor
writes to memory: gpu_blocks.json has the amount on a fake H100 for each kind of layer.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from gam_scale.plan.operators import WORKSPACE


def compiler(
    run: Callable[["GraphMemory", list[Any]], list[Any]],
    is_weight: Callable[[torch.Size], bool],
    factor: float,
) -> Callable[..., Any]:
    """Make a backend for torch.compile that hands each graph to ``run`` whenever it is called.

    Args:
        run: takes a graph and its inputs, and returns its outputs.
        is_weight: returns whether a shape is that of some weights.
        factor: peak of a backward graph's activations without the block's input, divided by what
            the forward graph would keep for it if nothing were recomputed.
    """
    peak_bytes = 0.0

    def partition(joint: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        nonlocal peak_bytes
        cut = partial(min_cut_rematerialization_partition, compiler="inductor")
        with warnings.catch_warnings():  # a copy of torch's argument trees warns
            warnings.filterwarnings("ignore", "`isinstance", FutureWarning)
            whole = copy.deepcopy(joint)
        for node in whole.graph.nodes:
            node.meta.pop("recompute", None)
        _, backward = cut(whole, inputs, **options)
        kept = [n for n in _inputs(backward) if not n.name.startswith(("primals", "tangents"))]
        peak_bytes = factor * sum(_bytes(n) for n in kept if not _is_like(n, is_weight))
        return cut(joint, inputs, **options)

    def compile_graph(
        module: fx.GraphModule, _: Sequence[Any], *, is_backward: bool
    ) -> Callable[[list[Any]], list[Any]]:
        graph = GraphMemory(module, is_weight, peak_bytes if is_backward else 0.0)

        def call(args: list[Any]) -> list[Any]:
            taken = list(args)
            args.clear()  # as compiled code does, which frees saved tensors once they are read
            return run(graph, taken)

        call._boxed_call = True  # type: ignore[attr-defined]  # torch's mark of such a function
        return call

    return aot_autograd(
        fw_compiler=partial(compile_graph, is_backward=False),
        bw_compiler=partial(compile_graph, is_backward=True),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )


class GraphMemory:
    """One graph of operators, and what is in memory while it runs.

    Args:
        module: the graph.
        is_weight: returns whether a shape is that of some weights.
        peak_bytes: peak bytes of activations, without the block's input and operators' workspace.

    Attributes:
        activations: peak bytes of activations beside the graph's inputs, with workspace.
        gradients: bytes of the weights' gradients that the graph makes.
    """

    def __init__(
        self, module: fx.GraphModule, is_weight: Callable[[torch.Size], bool], peak_bytes: float
    ) -> None:
        self.inputs = _inputs(module)
        self.nodes = [n for n in module.graph.nodes if n.op != "output"]
        (output,) = (n for n in module.graph.nodes if n.op == "output")
        self.returned = list(output.args[0])
        self.base = {n: _base(n) for n in self.nodes}
        given = [n for n in self.inputs if not n.name.startswith("primals")]
        here = sum(_bytes(n) for n in given if not _is_like(n, is_weight))
        workspace = max(map(_workspace, self.nodes), default=0.0)
        self.activations = max(0.0, peak_bytes - here) + workspace
        made = {self.base[n] for n in self.returned if isinstance(n, fx.Node)} - set(self.inputs)
        self.gradients = sum(_bytes(n) for n in made if _is_like(n, is_weight))

    def outputs(self, args: list[Any]) -> list[Any]:
        """Return tensors without data in place of the graph's results, for the inputs ``args``."""
        given = dict(zip(self.inputs, args, strict=True))
        made: dict[fx.Node, Tensor] = {}
        results = []
        for node in self.returned:
            if not isinstance(node, fx.Node) or not isinstance(node.meta["val"], Tensor):
                results.append(given.get(node) if isinstance(node, fx.Node) else node)
                continue
            if node in given:
                results.append(given[node])
                continue
            base, value = self.base[node], node.meta["val"]
            if base not in given and base not in made:
                made[base] = _empty(base.meta["val"])
            whole = given[base] if base in given else made[base]
            if node is not base:
                whole = whole.detach().as_strided(
                    value.shape, value.stride(), value.storage_offset()
                )
            results.append(whole)
        return results

    def copies(self, is_weight: Sequence[bool]) -> list[bool]:
        """Return for each output whether it is a copy of weights, given which inputs are weights.

        A copy is computed from weights alone and is no larger than they are.
        """
        derived = {n for n, w in zip(self.inputs, is_weight, strict=True) if w}
        for node in self.nodes:
            inputs = node.all_input_nodes
            weights = sum(_bytes(self.base[n]) for n in inputs)
            if inputs and all(n in derived for n in inputs) and _bytes(self.base[node]) <= weights:
                derived.add(node)
        return [isinstance(n, fx.Node) and self.base[n] in derived for n in self.returned]


def _inputs(module: fx.GraphModule) -> list[fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _base(node: fx.Node) -> fx.Node:
    """Return the node that a view, maybe of a view, is a view of; any other node itself."""
    while _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_function" and _is_item(node):
        return _is_view(node.all_input_nodes[0])  # one of several views, such as queries and keys
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return (
        bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    )


def _is_item(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_like(node: fx.Node, is_weight: Callable[[torch.Size], bool]) -> bool:
    """Return whether a value has the shape of some weights, or that shape transposed."""
    value = node.meta["val"]
    return isinstance(value, Tensor) and (is_weight(value.shape) or is_weight(value.shape[::-1]))


def _workspace(node: fx.Node) -> float:
    """Return the bytes that an operator takes while it runs, with its results if it has several."""
    if node.target not in WORKSPACE:
        return 0.0
    value = node.meta["val"]
    outputs = sum(map(_nbytes, value)) if isinstance(value, tuple | list) else 0.0
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    return WORKSPACE[node.target](*args) + outputs


def _bytes(node: fx.Node) -> float:
    """Return a node's bytes; 0 for several values, which count at the nodes that pick one each."""
    value = node.meta.get("val")
    return float(_nbytes(value)) if isinstance(value, Tensor) else 0.0


def _nbytes(tensor: Tensor) -> int:
    """Return a tensor's bytes, also where torch has made a symbol of a size."""
    return math.prod(map(int, tensor.shape)) * tensor.element_size()


def _empty(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
