"""Memory of a compiled block: its graphs as torch cuts them, and what a compiler fuses.

The graphs are those that the compiler would get. Which of their values it writes to memory is
modelled: what matrix products and other operators of their own read and write, sums, what is read
often, and what the graph returns. All else is computed inside the loops that need it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from functorch.compile import min_cut_rematerialization_partition
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from gam_scale.plan.operators import WORKSPACE

_OFTEN = 4
"""Reads from which on a value that several others need is written: inductor's default."""

aten, prims = torch.ops.aten, torch.ops.prims
_SUMS = {
    aten.sum, aten.amax, aten.amin, aten.mean, aten.var_mean, aten.var, aten.any, aten.argmax,
    aten.cumsum,
}  # fmt: skip
_FUSED = {
    aten.full, aten.full_like, aten.arange, prims.iota, aten.clone, aten.cat,
    aten.constant_pad_nd, aten.scalar_tensor, aten.eye, aten.slice_scatter, aten.select_scatter,
    aten.slice_backward, aten.tril, aten.triu, aten.lift_fresh_copy, aten._to_copy, aten.copy,
    aten.index, aten.gather, aten.empty, aten.flip, aten.new_zeros, aten.zeros, aten.ones,
    prims.convert_element_type,
}  # fmt: skip


def compiler(run: Callable[["GraphMemory", list[Any]], list[Any]]) -> Callable[..., Any]:
    """A backend for torch.compile whose graphs are handed to ``run`` at each call."""

    def compile_graph(
        gm: fx.GraphModule, _: Sequence[Any], *, is_backward: bool
    ) -> Callable[[list[Any]], list[Any]]:
        graph = GraphMemory(gm, is_backward)

        def call(args: list[Any]) -> list[Any]:
            taken = list(args)
            args.clear()  # as compiled code does: saved tensors go when they were read
            return run(graph, taken)

        call._boxed_call = True
        return call

    return aot_autograd(
        fw_compiler=partial(compile_graph, is_backward=False),
        bw_compiler=partial(compile_graph, is_backward=True),
        partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
        decompositions=select_decomp_table(),
    )


class GraphMemory:
    """One graph of operators, and what is in memory while it runs."""

    def __init__(self, gm: fx.GraphModule, is_backward: bool) -> None:
        self.is_backward = is_backward
        self.nodes = [n for n in gm.graph.nodes if n.op != "output"]
        self.inputs = [n for n in self.nodes if n.op == "placeholder"]
        (output,) = (n for n in gm.graph.nodes if n.op == "output")
        self.returned = list(output.args[0])
        self.base = {n: self._base(n) for n in self.nodes}

    def _base(self, node: fx.Node) -> fx.Node:
        while _is_view(node):
            node = node.all_input_nodes[0]
        return node

    def simulate(
        self, is_weight: list[bool], weight_shapes: set[torch.Size]
    ) -> tuple[tuple[float, float, float], list[bool]]:
        """Peak beside the inputs (activations, copies of weights, gradients of weights).

        And which of the outputs are copies of weights.
        """
        copies = self._copies(is_weight)
        gradients = self._gradients(weight_shapes) if self.is_backward else set()
        written = self._written()
        reads = self._reads(written)
        ends = {b: i for i, n in enumerate(self.nodes) for b in reads[n]}
        freeable = {
            n for n, w in zip(self.inputs, is_weight, strict=True) if not w and _is_whole(n)
        }
        kept = {self.base[n] for n in self.returned if n is not None}

        def category(node: fx.Node) -> int:
            return 2 if node in gradients else int(node in copies)

        current, most = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        for i, node in enumerate(self.nodes):
            ended = {b for b in reads[node] if ends[b] == i and b not in kept}
            ended = {b for b in ended if b.op != "placeholder" or b in freeable}
            inside = _workspace(node)
            if sum(current) + inside > sum(most):
                most = [current[0] + inside, *current[1:]]
            if node in written:
                size = _bytes(node)
                current[category(node)] += size
                # A loop may write into the place of what it reads last.
                in_place = _is_fused(node) and any(_bytes(b) == size for b in ended)
                if sum(current) - in_place * size > sum(most):
                    most = list(current)
                    most[0] -= in_place * size
            for b in ended:
                current[category(b)] -= _bytes(b)
            if node in written and node not in kept and node not in ends:
                current[category(node)] -= _bytes(node)  # read by nothing
        return tuple(most), [n is not None and self.base[n] in copies for n in self.returned]

    def outputs(self, args: list[Any]) -> list[Any]:
        """Tensors without data in the place of what the graph returns."""
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
            whole = given.get(base, made.get(base))
            if node is not base:
                whole = whole.detach().as_strided(
                    value.shape, value.stride(), value.storage_offset()
                )
            results.append(whole)
        return results

    def _copies(self, is_weight: list[bool]) -> set[fx.Node]:
        """What is computed from weights alone."""
        found = {n for n, w in zip(self.inputs, is_weight, strict=True) if w}
        for node in self.nodes:
            inputs = node.all_input_nodes
            weights = sum(_bytes(self.base[n]) for n in inputs)
            if inputs and all(n in found for n in inputs) and _bytes(self.base[node]) <= weights:
                found.add(node)
        return found

    def _gradients(self, weight_shapes: set[torch.Size]) -> set[fx.Node]:
        """What is returned in the shape of a weight."""
        return {
            self.base[n]
            for n in self.returned
            if isinstance(n, fx.Node)
            and n.op != "placeholder"
            and isinstance(n.meta["val"], Tensor)
            and n.meta["val"].shape in weight_shapes
        }

    def _written(self) -> set[fx.Node]:
        """Nodes whose values have memory of their own."""
        found: set[fx.Node] = set()
        returned = {self.base[n] for n in self.returned if isinstance(n, fx.Node)}
        depth: dict[fx.Node, int] = {}
        for node in self.nodes:
            if node.op == "placeholder" or _is_view(node) or _bytes(node) == 0:
                continue
            users = [u for u in _real_users(node)]
            depth[node] = sum(
                1
                if self.base[n] in found or self.base[n].op == "placeholder"
                else depth.get(self.base[n], 0)
                for n in node.all_input_nodes
            )
            is_written = (
                not _is_fused(node)
                or _packet(node) in _SUMS
                or node in returned
                or any(not _is_fused(u) for u in users)
                or (len(users) > 1 and depth[node] > _OFTEN)
            )
            if is_written:
                found.add(node)
        return found

    def _reads(self, written: set[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
        """What each node reads from memory when it is computed, if it is written."""
        sources: dict[fx.Node, set[fx.Node]] = {}
        reads: dict[fx.Node, set[fx.Node]] = {}
        for node in self.nodes:
            wanted = set().union(*(sources[n] for n in node.all_input_nodes))
            in_memory = node in written or node.op == "placeholder"
            sources[node] = {node} if in_memory else wanted
            reads[node] = (
                wanted if node in written or not _is_fused(node) and not _is_view(node) else set()
            )
        return reads


def _workspace(node: fx.Node) -> float:
    if node.target not in WORKSPACE:
        return 0.0
    outputs = sum(t.nbytes for t in node.meta["val"]) if _is_several(node) else 0.0
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    return WORKSPACE[node.target](*args) + outputs


def _is_several(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], tuple | list)


def _real_users(node: fx.Node) -> list[fx.Node]:
    """What reads a value, through views of it."""
    found = []
    for user in node.users:
        found += _real_users(user) if _is_view(user) else [user]
    return [u for u in found if u.op != "output"]


def _is_view(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    returns = node.target._schema.returns
    return (
        bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
    )


def _packet(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _is_fused(node: fx.Node) -> bool:
    """Whether the compiler makes it part of a loop."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function" and not _is_item(node)
    packet = _packet(node)
    return torch.Tag.pointwise in node.target.tags or packet in _FUSED or packet in _SUMS


def _is_item(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _is_whole(node: fx.Node) -> bool:
    """Whether an input is all of its storage."""
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.untyped_storage().nbytes() <= value.nbytes


def _bytes(node: fx.Node) -> float:
    """Of a value; what gives several is counted where each is taken."""
    value = node.meta.get("val")
    return float(value.nbytes) if isinstance(value, Tensor) else 0.0


def _empty(like: Tensor) -> Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
