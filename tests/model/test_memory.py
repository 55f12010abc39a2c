"""Test written memories: chunked forms against recurrences, documents, generation, horizons."""

import pytest
import recurrences
import torch
import torch.nn.functional as F
from closeness import is_alive, off
from layouts import plain

from gam_scale.config import MemoryConfig, ModelConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.memory.delta_rule import delta_memory
from gam_scale.model.memory.gate import DecayGate
from gam_scale.model.memory.pairs import MIN_LOG_DECAY
from gam_scale.model.mixers.phase import phase_memory
from gam_scale.model.mixers.scan import scan_memory
from gam_scale.model.mixers.slot import slot_memory
from gam_scale.model.mixers.static import StaticMemory
from gam_scale.model.policy import Draw, policy_of
from gam_scale.model.short_form import layer_of

CHUNKED = {
    "slot": (slot_memory, recurrences.slot),
    "delta": (delta_memory, recurrences.delta),
    "erasing delta": (delta_memory, recurrences.erasing_delta),
    "phase": (phase_memory, recurrences.phase),
    "scan": (scan_memory, recurrences.scan),
}
WRITTEN = ["slot", "delta", "phase", "scan"]
B, H, K, V, M, D = 2, 2, 4, 3, 5, 6


def draw(module: torch.nn.Module, name: str) -> None:
    """Set a parameter to its initial value."""
    rule, generator = policy_of(module, name).init, torch.Generator().manual_seed(0)
    rule(module, getattr(module, name).data, Draw(generator, "scaled", 1))


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def log_decays(generator: torch.Generator, *shape: int, lowest: float) -> torch.Tensor:
    """Draw log decays from -e^-5 to ``lowest``; a third is exactly 0, a tenth is ``lowest``."""
    g = -torch.exp(8 * torch.rand(shape, generator=generator, dtype=torch.float64) - 5)
    which = torch.rand(shape, generator=generator)
    g = g.clamp(min=lowest).masked_fill(which < 0.33, 0.0)
    return g.masked_fill(which > 0.9, lowest)


def make_inputs(kind: str, length: int, seed: int = 0) -> list[torch.Tensor]:
    """Return random arguments of the memory's function, in float64, without positions."""
    g = torch.Generator().manual_seed(seed)
    if kind == "slot":
        rows = [normal(g, B, length, H, n) for n in (K, K, V)]
        decay = log_decays(g, B, length, H, M, lowest=MIN_LOG_DECAY)
        return [*rows, decay, normal(g, B, H, M, K + V), normal(g, H, M, K + V)]
    if kind == "delta":
        q, k, v = (normal(g, B, length, H, n) for n in (K, K, V))
        beta = 2 * torch.rand((B, length, H), generator=g, dtype=torch.float64)
        decay = log_decays(g, B, length, H, lowest=-30.0)
        return [q, F.normalize(k, dim=-1), v, decay, beta, normal(g, B, H, K, V)]
    if kind == "erasing delta":
        q, k, v = (normal(g, B, length, H, n) for n in (K, K, V))
        gates = torch.rand((B, length, H, K + V), generator=g, dtype=torch.float64)
        decay = log_decays(g, B, length, H, K, lowest=MIN_LOG_DECAY)
        return [q, F.normalize(k, dim=-1), v, decay, gates, normal(g, B, H, K, V)]
    if kind == "phase":
        rows = [normal(g, B, length, H, 2 * n) for n in (K, K, V)]
        decay = log_decays(g, B, length, H, lowest=-30.0)
        return [*rows, decay, normal(g, B, H, K, 2 * V)]
    decay = log_decays(g, B, length, D, lowest=-30.0)
    return [normal(g, B, length, D), decay, normal(g, B, D)]


def make_positions(length: int, starts: list[int], first: int) -> torch.Tensor:
    """Return (B, T): documents start at ``starts`` in row 0; row 1 goes on from ``first``."""
    rows = torch.zeros(B, length, dtype=torch.int64)
    for row, (begin, where) in enumerate(((0, starts), (first, []))):
        place = begin
        for t in range(length):
            place = 0 if t in where else place
            rows[row, t] = place
            place += 1
    return rows


def results(function, inputs, documents, dtype):
    """Return output, final state, and every input's gradient for fixed random cotangents."""
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    y, state = function(*inputs, documents)
    g = torch.Generator().manual_seed(9)
    weights = [normal(g, *x.shape).to(dtype) for x in (y, state)]
    loss = (y * weights[0]).sum() + (state * weights[1]).sum()
    grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [y, state, *grads]


LENGTHS = [1, 2, 7, 64, 130]  # chunks are of 64 tokens, the scan's of 256
DOCUMENTS = {
    "none": lambda t: None,
    "one": lambda t: make_positions(t, [0], 7),
    "last token": lambda t: make_positions(t, [0, t - 1], 7),
    "chunk edges": lambda t: make_positions(t, [63, 64, 65, 128, 255, 256], 0),
    "many tiny": lambda t: make_positions(t, [s for s in range(t) if s % 3 == 0 or s % 7 < 2], 1),
}


@pytest.mark.parametrize("documents", DOCUMENTS)
@pytest.mark.parametrize("kind", CHUNKED)
# float64: rounding of sums of some hundred terms; float32 the same, 2**29 times larger.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_the_chunked_form_is_the_recurrence(kind, documents, dtype, tolerance):
    chunked, recurrence = CHUNKED[kind]
    for length in [*LENGTHS, 300] if kind == "scan" else LENGTHS:
        inputs, positions = make_inputs(kind, length, seed=length), DOCUMENTS[documents](length)
        wanted = results(recurrence, inputs, positions, torch.float64)
        layout = Layout.stream(B, length) if positions is None else Layout.of(positions)
        found = results(chunked, inputs, layout, dtype)
        for i, (x, y) in enumerate(zip(found, wanted, strict=True)):
            if y is None:  # a bank that no document starts from
                assert x is None or not x.any()
                continue
            # With nothing to forget, the two terms of a decay's gradient cancel.
            wrong = off(x, y) if y.any() else float(x.abs().max())
            assert wrong < tolerance, f"T {length}: result {i} is off by {wrong:.1e}"


def test_a_slot_memory_that_never_forgets_is_the_papers():
    """alpha = 1, one head, queries h, and the bank as keys and values: softmax(h Mᵀ) M."""
    static = StaticMemory(8, 16).double()
    draw(static, "bank")
    h = normal(torch.Generator().manual_seed(1), 2, 70, 8)
    rows = h.unsqueeze(2)  # (B, T, 1, d)
    bank = torch.cat([static.bank, static.bank], dim=-1)[None]
    never = h.new_zeros(2, 70, 1, 16)
    layout = Layout.of(make_positions(70, [0, 5, 64], 0))
    y, state = slot_memory(rows, rows, rows, never, bank.expand(2, 1, -1, -1), bank, layout)
    torch.testing.assert_close(y.squeeze(2), static(h, layout), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state, bank.expand(2, 1, -1, -1), rtol=0, atol=0)


def make_model(kind: str, position: str = "rotary", **memory) -> torch.nn.Module:
    config = ModelConfig(
        d_model=16,
        n_layers=2,
        vocab_size=23,
        dropout=0.0,
        position=position,
        memory=MemoryConfig(kind=kind, n_heads=2, n_slots=6, top_k=2, **memory),
    )
    return build_model(config, seed=0).double().eval()


@pytest.mark.parametrize("position", ["rotary", "none"])
@pytest.mark.parametrize("kind", WRITTEN)
def test_generation_gives_the_logits_of_training(kind, position):
    model = make_model(kind, position)
    tokens = torch.randint(23, (2, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(tokens)
        state, start = model.init_state(2), 0
        for length in (1, 1, 70, 1, 64, 1, 12):
            logits, state = model.extend(tokens[:, start : start + length], state)
            start += length
            torch.testing.assert_close(logits, full[:, start - 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", WRITTEN)
def test_no_token_feels_another_document(kind):
    """Another document's embeddings change neither its outputs nor their gradients."""
    model = make_model(kind)
    layout = Layout.of(make_positions(80, [0, 1, 30, 64, 79], 0)[:1])
    layout = layout.turned(model.config.rotation(torch.float64))
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 1, 80, 16).requires_grad_()

    def run(x):
        for block in model.blocks:
            x = block(x, layout)
        return x

    y = run(x)
    for first, end in ((0, 1), (1, 30), (30, 64), (64, 79), (79, 80)):
        outside = torch.ones(80, dtype=torch.bool)
        outside[first:end] = False
        (grad,) = torch.autograd.grad(y[:, first:end].square().sum(), x, retain_graph=True)
        assert not grad[:, outside].any() and is_alive(grad[:, first:end])
        changed = torch.where(outside[:, None], normal(generator, 1, 80, 16), x)
        assert torch.equal(run(changed)[:, first:end], y[:, first:end])


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_parameter_learns(kind):
    model = make_model(kind)
    tokens = torch.randint(23, (2, 70), generator=torch.Generator().manual_seed(0))
    model(tokens, tokens.roll(-1, 1)).backward()
    for name, parameter in model.named_parameters():
        assert is_alive(parameter.grad), name


@pytest.mark.parametrize("kind", WRITTEN)
def test_context_reaches_past_the_papers_13_tokens(kind):
    model = make_model(kind)
    x = normal(torch.Generator().manual_seed(0), 1, 200, 16).requires_grad_()
    y, layout = x, plain(x).turned(model.config.rotation())
    for block in model.blocks:
        y = block(y, layout)
    y[0, -1].square().sum().backward()
    assert is_alive(x.grad[0, 0])


def horizons(n_gates: int, shortest: float, longest: float) -> torch.Tensor:
    """Return the initial horizons of a gate whose input is zero."""
    gate = DecayGate(32, n_gates, (shortest, longest))
    for parameter in gate.strength.parameters():
        torch.nn.init.zeros_(parameter)
    draw(gate, "log_rate")
    found = -1 / gate(torch.zeros(1, 1, 32)).flatten()
    assert found.max().item() == pytest.approx(gate.longest_horizon, rel=1e-4)
    return found


def test_horizons_are_spread_and_one_head_has_the_middle():
    expected = 16 * 4096 ** (torch.arange(9) / 8)
    found = horizons(9, 16.0, 65_536.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)  # exp and log in float32
    for n_gates, wanted in ((1, [1024.0]), (2, [16.0, 65_536.0])):
        found = horizons(n_gates, 16.0, 65_536.0)
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-4, atol=0)


def test_horizons_follow_the_context_unless_they_are_set():
    for context, longest in ((4096, 4096.0), (256, 256.0), (8, 16.0)):  # never below the shortest
        assert MemoryConfig().horizons(context) == (16.0, longest)
    assert MemoryConfig(max_horizon=65_536.0).horizons(256) == (16.0, 65_536.0)


def test_a_routed_token_leaves_other_slots_exactly_as_they_are():
    gate = DecayGate(8, 6, (16.0, 65_536.0), n_groups=3)
    for name in ("weight", "bias"):
        torch.nn.init.normal_(getattr(gate.strength, name), generator=torch.Generator())
    draw(gate, "log_rate")
    h = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    decays = gate(h, top_k=2)
    assert ((decays != 0).sum(-1) == 2).all()
    assert torch.equal(decays[decays != 0], gate(h)[decays != 0])


@pytest.mark.parametrize("kind", ["static", *WRITTEN])
def test_autocast_keeps_states_in_float32(kind):
    config = ModelConfig(d_model=16, memory=MemoryConfig(n_heads=2, n_slots=6))
    memory = layer_of(kind, {"gam": config.gam, "memory": config.memory}).build_memory(config.shape)
    for p in memory.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(0))
    h = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    state = memory.init_state(2, h.device, h.dtype)
    exact, _ = memory.extend(h, state, plain(h).turned(config.rotation()))
    with torch.autocast("cpu", torch.bfloat16):
        y, after = memory.extend(h, state, plain(h).turned(config.rotation()))
    assert all(x.dtype == torch.float32 for x in after.values())
    assert off(y, exact) < 0.03  # bfloat16 projections: 8 bits
