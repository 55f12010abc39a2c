"""What a block's forward pass computes in float32, its backward pass computes in float32 too."""

import pytest
import torch
from closeness import off, worst
from small import small
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.utils._python_dispatch import TorchDispatchMode

from gam_scale.model.lm import build_model
from gam_scale.parallel.blocks import prepare_blocks

aten = torch.ops.aten
# Products of heads and chunks are batched; those with weights (projections, gates) are not.
KINDS = ["slot", "delta", "phase"]


def make_model(kind):
    return build_model(small(kind, kind, d_model=32), 0)


def gradients(model, precision="bf16"):
    tokens = torch.randint(23, (2, 129), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def recording(graphs):
    """Return a backend that notes each graph it is given, and whether it is a backward pass."""

    def note(is_backward):
        def compile_graph(gm, inputs):
            graphs.append((is_backward, gm.graph))
            return make_boxed_func(gm)

        return compile_graph

    return aot_autograd(
        fw_compiler=note(False),
        bw_compiler=note(True),
        decompositions=select_decomp_table(),
        partition_fn=min_cut_rematerialization_partition,
    )


def expected(kind):
    """Return the dtypes of a memory's batched products: float64 ones sum a head's one decay."""
    return {torch.float32} if kind == "slot" else {torch.float32, torch.float64}


def dtypes(graphs, targets, *, backward):
    nodes = (n for is_backward, graph in graphs if is_backward == backward for n in graph.nodes)
    return {n.meta["val"].dtype for n in nodes if n.target in targets}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_products_of_a_memory_are_float32_in_both_passes(kind, recompute):
    torch._dynamo.reset()
    model, graphs = make_model(kind), []
    prepare_blocks(model, recompute, compiled=True, backend=recording(graphs))
    gradients(model)
    for backward in (False, True):
        batched = [aten.bmm.default, aten.baddbmm.default]
        assert dtypes(graphs, batched, backward=backward) == expected(kind)
        # Projections in bf16, gates in fp32.
        products = dtypes(graphs, [aten.mm.default, aten.addmm.default], backward=backward)
        assert products == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize("kind", [*KINDS, "scan", "static", "attention", "mamba"])
def test_compiled_gradients_are_those_of_eager_blocks(kind):
    eager, compiled = make_model(kind), make_model(kind)
    prepare_blocks(eager, "selective", compiled=False)
    torch._dynamo.reset()
    prepare_blocks(compiled, "selective", compiled=True, backend="aot_eager_decomp_partition")
    expected, found = gradients(eager), gradients(compiled)
    # Decomposed operators round to 8 bits in other places than whole ones.
    assert worst(off(found[name], expected[name]) for name in expected) < 2e-2


class Products(TorchDispatchMode):
    """Notes the dtypes of batched products."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is aten.bmm.default:
            self.seen.append(out.dtype)
        return out


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_eager_products_are_float32_where_they_are_recomputed_too(kind, recompute):
    model = make_model(kind)
    prepare_blocks(model, recompute, compiled=False)
    with Products() as products:
        gradients(model)
    assert len(products.seen) > 6 and set(products.seen) == expected(kind)
