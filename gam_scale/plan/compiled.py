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
        self.kept = {self.base[n] for n in self.returned if isinstance(n, fx.Node)}
        self.written = self._written()
        self.reads = self._reads()

    def _base(self, node: fx.Node) -> fx.Node:
        while _is_view(node):
            node = node.all_input_nodes[0]
        return node

    def simulate(
        self, is_weight: list[bool], weight_shapes: set[torch.Size]
    ) -> tuple[list[float], list[bool]]:
        """Run the graph in order, values coming when they are written and going when last read.

        Returns:
            the peak beside the inputs: activations, copies of weights, gradients of weights;
            and for each output whether it is a copy of weights.
        """
        copies = self._copies(is_weight)
        gradients = self._gradients(weight_shapes) if self.is_backward else set()
        ends = {read: i for i, node in enumerate(self.nodes) for read in self.reads[node]}
        borrowed = {n for n, w in zip(self.inputs, is_weight, strict=True) if w or not _is_whole(n)}

        def category(node: fx.Node) -> int:
            return 2 if node in gradients else int(node in copies)

        now, most = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        for i, node in enumerate(self.nodes):
            ended = {b for b in self.reads[node] if ends[b] == i} - self.kept - borrowed
            moment, size = list(now), _bytes(node)
            moment[0] += _workspace(node)
            if node in self.written:
                now[category(node)] += size
                # A loop may write into the place of what it reads last.
                if not (_is_fused(node) and any(_bytes(b) == size for b in ended)):
                    moment[category(node)] += size
            most = max(most, moment, key=sum)
            if node in self.written and node not in self.kept and node not in ends:
                ended.add(node)  # read by nothing
            for b in ended:
                now[category(b)] -= _bytes(b)
        is_copy = [isinstance(n, fx.Node) and self.base[n] in copies for n in self.returned]
        return most, is_copy

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
        n_reads: dict[fx.Node, int] = {}  # of memory, by the loop that computes a value
        for node in self.nodes:
            if node.op == "placeholder" or _is_view(node) or _bytes(node) == 0:
                continue
            sources = [self.base[n] for n in node.all_input_nodes]
            n_reads[node] = sum(1 if n in found else n_reads.get(n, 1) for n in sources)
            readers = _readers(node)
            if (
                not _is_fused(node)
                or _packet(node) in _SUMS
                or node in self.kept
                or any(not _is_fused(r) for r in readers)
                or (len(readers) > 1 and n_reads[node] > _OFTEN)
            ):
                found.add(node)
        return found

    def _reads(self) -> dict[fx.Node, set[fx.Node]]:
        """What is read from memory for each value, when that is computed; views read nothing."""
        sources: dict[fx.Node, set[fx.Node]] = {}
        reads: dict[fx.Node, set[fx.Node]] = {}
        for node in self.nodes:
            wanted = set().union(*(sources[n] for n in node.all_input_nodes))
            is_run = node in self.written or not (_is_fused(node) or _is_view(node))
            reads[node] = wanted if is_run else set()
            in_memory = node in self.written or node.op == "placeholder"
            sources[node] = {node} if in_memory else wanted
        return reads


def _workspace(node: fx.Node) -> float:
    if node.target not in WORKSPACE:
        return 0.0
    outputs = sum(t.nbytes for t in node.meta["val"]) if _is_several(node) else 0.0
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    return WORKSPACE[node.target](*args) + outputs


def _is_several(node: fx.Node) -> bool:
    return isinstance(node.meta["val"], tuple | list)


def _readers(node: fx.Node) -> list[fx.Node]:
    """What reads a value, through views of it."""
    found = []
    for user in node.users:
        found += _readers(user) if _is_view(user) else [user]
    return [reader for reader in found if reader.op != "output"]


def _is_view(node: fx.Node) -> bool:
    if node.op == "call_function" and _is_item(node):
        return _is_view(node.all_input_nodes[0])  # one of several views, as of queries and keys
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
