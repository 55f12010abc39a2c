"""Blocks that are recomputed, compiled or in segments give the loss and gradients of plain ones."""

import needs
import pytest
import torch
from closeness import off
from small import BY_CHANNEL, WHOLE, small
from torch._dynamo.testing import CompileCounter

from gam_scale.config import ModelConfig
from gam_scale.kernels.operator import operator
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel import blocks
from gam_scale.parallel.blocks import _recomputed, prepare_blocks

SHAPE = {"d_model": 32, "n_layers": 2, "vocab_size": 61, "max_seq_len": 16, "dropout": 0.3}
BLOCKS = ("gam", "attention", "mamba")
IN_SEGMENTS = [kind for kind in implementations() if MIXERS[kind].by_pieces]


def model_and_tokens(block):
    tokens = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(0))
    return build_model(ModelConfig(block=block, **SHAPE), seed=0), tokens


def loss_and_gradients(model, tokens, layout=None):
    torch.manual_seed(7)  # dropout
    loss = model(tokens[:, :-1], tokens[:, 1:], layout)
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def packed():
    """Return the layout of 3 rows of 16 tokens, with three documents in each."""
    return Layout.of(torch.cat([torch.arange(n) for n in (5, 1, 10)]).expand(3, -1))


@pytest.mark.parametrize("layout", [None, packed()], ids=["stream", "documents"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputing_changes_nothing(block, recompute, layout):
    """Dropout masks are kept: a mask drawn again in the backward pass would be another one."""
    model, tokens = model_and_tokens(block)
    expected = loss_and_gradients(model, tokens, layout)
    prepare_blocks(model, recompute, compiled=False)
    for a, b in zip(loss_and_gradients(model, tokens, layout), expected, strict=True):
        assert torch.equal(a, b)


@needs.compiler
@pytest.mark.parametrize(
    ("block", "recompute", "layout"),
    [
        ("gam", "none", None),
        ("gam", "selective", None),
        ("gam", "full", None),
        ("attention", "selective", packed()),
        ("attention", "full", packed()),
    ],
)
def test_compiling_changes_nothing(block, recompute, layout):
    torch._dynamo.reset()
    model, tokens = model_and_tokens(block)
    expected = loss_and_gradients(model, tokens, layout)
    prepare_blocks(model, recompute, compiled=True)
    # Sums in another order: some hundred float32 roundings of numbers of the same size.
    for a, b in zip(loss_and_gradients(model, tokens, layout), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_one_graph(block):
    torch._dynamo.reset()
    model, _ = model_and_tokens(block)
    layout = Layout.of(torch.arange(16).expand(3, 16).contiguous())
    explained = torch._dynamo.explain(model.blocks[0])(torch.randn(3, 16, 32), layout)
    assert explained.graph_break_count == 0


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", IN_SEGMENTS)
def test_a_long_sequence_in_segments_is_the_whole_one(monkeypatch, kind, recompute):
    """Documents start at a segment's first token, its last, inside; the last segment is short."""
    config = small(kind, kind, position="rotary")
    tokens = torch.randint(23, (2, 151), generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([max(s for s in (0, 39, 80, 100) if s <= t) for t in range(150)])
    for layout in (None, Layout.of((torch.arange(150) - starts).expand(2, -1))):
        gradients = []
        for segment in (1 << 20, 40):
            monkeypatch.setitem(blocks.SEGMENT, "cpu", segment)
            model = build_model(config, 0).double()
            prepare_blocks(model, recompute, compiled=False)
            loss = model(tokens[:, :-1], tokens[:, 1:], layout)
            loss.backward()
            gradients.append([loss, *(p.grad for p in model.parameters())])
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2])
def test_lengths_share_their_segments_graphs(rows):
    """A kind of layer has one graph for the first segment and one for all others; none is eager."""
    torch._dynamo.reset()
    kinds = [*IN_SEGMENTS, WHOLE, BY_CHANNEL]
    config = small(*kinds)
    model, counter = build_model(config, 0), CompileCounter()
    prepare_blocks(model, "selective", compiled=True, backend=counter, segment=8)
    for length in (24, 16, 40):
        tokens = torch.randint(23, (rows, length + 1), generator=torch.Generator().manual_seed(0))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        assert counter.frame_count == 2 * len(kinds)


@pytest.mark.parametrize("kind", IN_SEGMENTS)
def test_what_a_segment_starts_from_keeps_nothing_else_alive(kind):
    """The state lives until the backward pass; a view would keep its whole base alive so long."""
    model = build_model(small(kind), 0)
    block = model.blocks[0]
    extend, seen = block.extend, []

    def see(x, state, layout):
        seen.extend(state.values())
        return extend(x, state, layout)

    block.extend = see
    prepare_blocks(model, "none", compiled=False, segment=8)
    block(torch.randn(1, 64, 16, requires_grad=True), Layout.stream(1, 64))
    assert len(seen) >= 8
    for tensor in seen:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_segments_in_bf16_can_be_recomputed(monkeypatch, recompute):
    """Autocast casts a weight once in a forward pass, but for each segment in a recomputation."""
    monkeypatch.setitem(blocks.SEGMENT, "cpu", 40)
    config = ModelConfig(d_model=16, n_layers=1, vocab_size=23, dropout=0.0, position="none")
    tokens = torch.randint(23, (2, 101), generator=torch.Generator().manual_seed(0))
    gradients = []
    for how in ("none", recompute):
        model = build_model(config, 0)
        prepare_blocks(model, how, compiled=False)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        gradients.append([loss, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 1e-2 * a.norm()  # sums over segments in fp32, not in bf16


@pytest.mark.parametrize(("keep", "again"), [(None, (1, 1)), ("dear", (0, 1)), ("always", (0, 0))])
def test_an_operator_says_whether_it_is_computed_again(keep, again):
    calls = []

    @operator(f"gam_scale_tests::thrice_{keep}".lower(), keep=keep)
    def thrice(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape)
        return 3 * x

    thrice.register_autograd(lambda ctx, grad: 3 * grad)
    for recompute, more in zip(("selective", "full"), again, strict=True):
        calls.clear()
        x = torch.ones(2, requires_grad=True)
        _recomputed(lambda x: thrice(x).sin(), recompute)(x).sum().backward()
        assert off(x.grad, 3 * torch.cos(3 * torch.ones(2))) < 1e-6
        assert len(calls) == 1 + more, recompute
