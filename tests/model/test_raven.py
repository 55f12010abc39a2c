"""Test Raven: its recurrence step by step, its router, its noise, and the paper's bank."""

import math

import pytest
import torch
import torch.nn.functional as F
from closeness import differ, is_alive, off, worst
from small import VOCAB, small
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from gam_scale.errors import UserError
from gam_scale.model.config import ModelConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.mixers.raven import RavenLayer, RavenMemory, gumbel, shares
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.strict import from_dict, to_dict

D, H, M, TOP = 16, 2, 12, 3


def make_memory(**settings) -> RavenMemory:
    model = small("static", d_model=D)
    layer = RavenLayer(n_heads=H, n_slots=M, top_k=TOP, **settings)
    memory = layer.build_memory(model.shape)
    generator = torch.Generator().manual_seed(0)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return memory.double()


def step_by_step(memory, h, state, positions):
    """Compute Raven's recurrence token by token; documents start from GAM's bank."""
    heads = (H, D // H)
    outputs = []
    for t in range(h.shape[1]):
        x = h[:, t]
        fresh = (positions[:, t] == 0).view(-1, 1, 1, 1)
        state = torch.where(fresh, memory.bank, state)
        q, k, v = (memory.qkv(x)).unflatten(-1, (3, *heads)).unbind(1)
        q, k = (y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() for y in (q, k))
        scores = torch.sigmoid(F.linear(x, memory.router.weight)).unflatten(-1, (H, M))
        largest = scores.topk(TOP, -1)
        share = torch.zeros_like(scores).scatter(-1, largest.indices, largest.values)
        share = share / share.sum(-1, keepdim=True)
        strength = memory.gate.strength(x) + math.log(math.expm1(1))
        rate = memory.gate.log_rate.exp().squeeze(0) * F.softplus(strength)
        a = torch.exp(-rate.unsqueeze(-1) * share).clamp(min=torch.tensor(-10.0).double().exp())
        a = a.unsqueeze(-1)
        state = a * state + (1 - a) * torch.cat([k, v], -1).unsqueeze(-2)
        keys, values = state.split(D // H, -1)
        found = torch.einsum("bhmk,bhk->bhm", keys, q) / (D // H) ** 0.5
        y = torch.einsum("bhm,bhmv->bhv", found.softmax(-1), values)
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        outputs.append(memory.out(y.flatten(1)))
    return torch.stack(outputs, 1), state


def results(run, memory, h):
    """Return output, final state, and the gradients of the input and of every parameter."""
    leaves = [h, *memory.parameters()]
    y, state = run(h)
    state = state["memory"] if isinstance(state, dict) else state
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    return [y, state, *torch.autograd.grad(loss, leaves)]


def make_input(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h and positions: documents start within chunks, at their edges, and in a row."""
    starts = [[0, 1, 2, 20, 63, 64, 100], [0, 64]]
    places = [[t - max(s for s in row if s <= t) for t in range(length)] for row in starts]
    h = torch.randn(2, length, D, generator=torch.Generator().manual_seed(length))
    return h.double().requires_grad_(), torch.tensor(places)


@pytest.mark.parametrize("length", [1, 7, 64, 130])
# float64: rounding of sums of some hundred terms; float32 the same, 2**29 times larger.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_chunks_are_the_recurrence(length, dtype, tolerance):
    memory, (h, positions) = make_memory(), make_input(length)
    start = memory.bank.detach().expand(2, -1, -1, -1)
    expected = results(lambda h: step_by_step(memory, h, start, positions), memory, h)
    memory, h = memory.to(dtype), h.detach().to(dtype).requires_grad_()
    start, layout = start.to(dtype), Layout.of(positions)
    found = results(lambda h: memory.forward_from(h, {"memory": start}, layout, None), memory, h)
    names = ["y", "state", "h", *(name for name, _ in memory.named_parameters())]
    for name, x, y in zip(names, found, expected, strict=True):
        assert off(x, y) < tolerance, name


def test_a_token_writes_to_top_k_slots_shares_that_sum_to_1():
    memory, (h, _) = make_memory(), make_input(40)
    given, decays = memory.shares(h), memory.log_decays(h, training=False)
    assert ((given > 0).sum(-1) == TOP).all()
    torch.testing.assert_close(given.sum(-1), given.new_ones(given.shape[:-1]))
    assert not decays[given == 0].any() and (decays[given > 0] < 0).all()
    torch.testing.assert_close(decays.sum(-1), memory.gate(h).squeeze(2))


def test_slots_that_tie_are_chosen_alike():
    scores = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0])
    m = torch.sigmoid(scores)
    m[[0, 4]] = 0
    torch.testing.assert_close(shares(scores, 2), m / m.sum())
    torch.testing.assert_close(shares(torch.zeros(5), 2), torch.full((5,), 0.2))
    far = shares(scores - 200, 3)  # sigmoids underflow in float32; their shares do not
    torch.testing.assert_close(far, shares(scores.double() - 200, 3).float())


def test_without_writes_it_is_a_constant_bank():
    memory, (h, positions) = make_memory(), make_input(70)
    with torch.no_grad():
        memory.gate.log_rate.fill_(-torch.inf)
    start = memory.init_state(2, h.device, h.dtype)
    y, state = memory.forward_from(h, start, Layout.of(positions), None)
    assert torch.equal(state["memory"], start["memory"])
    keys, values = memory.bank.split(D // H, -1)
    q = memory.norm_heads(memory.qkv(h)[..., :D].unflatten(-1, (H, -1))) * (D // H) ** -0.5
    read = torch.einsum("bthk,hmk->bthm", q, keys).softmax(-1)
    read = memory.norm_heads(torch.einsum("bthm,hmv->bthv", read, values))
    torch.testing.assert_close(y, memory.out(read.flatten(2)), rtol=1e-12, atol=1e-12)


def test_gumbel_noise_has_its_mean_and_its_spread():
    torch.manual_seed(0)
    noise = gumbel(torch.empty(1 << 20))
    assert torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=5e-3)  # 4 standard errors: 5e-3
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)


def test_noise_is_of_training_alone_and_the_same_when_computed_again():
    memory, (h, positions) = make_memory(router_noise=1.0), make_input(40)
    layout = Layout.of(positions)

    def run(h):
        return memory(h, layout)

    memory.eval()
    assert torch.equal(run(h), run(h))
    before = torch.get_rng_state()
    memory.train().statistics(h)
    assert is_alive(memory.state_norm(h, layout)) and memory.training
    assert torch.equal(torch.get_rng_state(), before), "to look at it changes the run"
    assert differ(run(h), run(h))
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        y = checkpoint(run, h, use_reentrant=False) if again else run(h)
        torch.rand(5)  # the backward pass finds the generator in another state
        grads.append(torch.autograd.grad(y.square().sum(), [h, *memory.parameters()]))
    for once, twice in zip(*grads, strict=True):
        assert torch.equal(once, twice)


def test_noise_stays_in_one_graph_and_is_drawn_once():
    """Gradients are the same with recomputation or without, compiled or not."""
    grads = []
    for recompute, compiled in (("none", False), ("selective", True), ("full", False)):
        torch._dynamo.reset()
        layers = [{"kind": "raven", **RavenLayer.small_settings, "router_noise": 1.0}]
        config = from_dict(ModelConfig, to_dict(small("raven")) | {"layers": layers}, "model")
        model, counter = build_model(config, 0), CompileCounterWithBackend("aot_eager")
        prepare_blocks(model, recompute, compiled=compiled, backend=counter)
        torch.manual_seed(0)
        tokens = torch.randint(VOCAB, (2, 17))
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        assert counter.frame_count == compiled
        grads.append([p.grad for p in model.parameters()])
    for found in grads[1:]:
        assert worst(off(x, y) for x, y in zip(found, grads[0], strict=True)) < 1e-5


def test_statistics_say_what_the_router_does():
    memory, (h, _) = make_memory(), make_input(40)
    with torch.no_grad():
        memory.router.weight.zero_()
        memory.router.weight[:TOP] = 0.1 * h[0, 0].abs()  # in the first head alone
        found = memory.statistics(h.abs())
    assert found["slots_used"].tolist() == [[TOP / M, 1.0]] * 2
    entropy = found["router_entropy"]
    torch.testing.assert_close(entropy[:, 0], torch.full_like(entropy[:, 0], TOP).log())
    torch.testing.assert_close(entropy[:, 1], torch.full_like(entropy[:, 1], M).log())
    assert is_alive(found["write_horizon"]) and found["write_horizon"].shape == (80, H)
    kept = found["horizon"].view(2, M, H)[:, TOP:, 0]
    assert (kept > 1e8).all(), "a slot that keeps what it holds seems to forget"


def test_horizons_at_the_start_count_writes():
    """If the gate's input is zero, its rates alone decide the horizons."""
    layer = RavenLayer(n_heads=3, n_slots=8, top_k=4, min_horizon=0.5, max_horizon=8.0)
    config = small("static", d_model=12, layers=[layer])
    memory = build_model(config, 0).blocks[0].memory
    found = memory.statistics(torch.zeros(1, 5, 12))["write_horizon"]
    expected = torch.tensor([0.5, 2.0, 8.0]).expand(5, 3)
    torch.testing.assert_close(found, expected)


def test_the_longest_horizon_may_be_the_writes_of_a_text():
    """A slot gets one write in four here, so its longest horizon in tokens is the whole text."""
    layer = RavenLayer(n_slots=8, top_k=2, max_horizon=0.0).at_length(400)
    assert layer.max_horizon == 100.0 and layer.at_length(9) == layer
    memory = layer.build_memory(small("static", d_model=16).shape)
    assert memory.longest_horizon == pytest.approx(400.0)
    published = RavenLayer(decay_start="published")
    assert published.at_length(400) == published


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 300}, r"layers\[0\].top_k is 300, more than n_slots 256; expected at most"),
        ({"gate": "plain"}, "a layer of kind raven has no such setting; expected some of ffn"),
        ({"router_noise": -1}, "router_noise is -1.0; expected at least 0"),
        ({"min_horizon": 9.0}, "min_horizon is 9, above max_horizon 4"),
        (
            {"decay_start": "published", "max_horizon": 9.0},
            "max_horizon is 9 with decay_start published, which decides over all horizons",
        ),
        (
            {"read_norm": "whole", "output_gate": "silu"},
            "read_norm is whole with output_gate silu, which has a norm of each head; expected",
        ),
    ],
)
def test_what_it_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        from_dict(ModelConfig, {"layers": [{"kind": "raven"} | settings]}, "model").check()


def test_named_by_its_kind_it_has_its_own_slots():
    model = small("raven")
    (layer,) = model.stack()
    assert (layer.n_heads, layer.n_slots, layer.top_k, layer.max_horizon) == (2, 256, 32, 4.0)
