"""Test the selective scan against the recurrence, one step at a time in float64."""

from functools import partial

import needs
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.selective_scan import _scan, selective_scan

NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")
ROWS, WIDTH, STATES = 2, 5, 3
RESETS = {
    "none": [],
    "first token": [0],
    "last token": [-1],
    "chunk edge": [16, 32],  # states are stored every 8 tokens here
    "around a chunk edge": [15, 17, 31, 33],
    "many tiny documents": list(range(0, 1000, 2)),
    "every token": list(range(1000)),
}


def reference_selective_scan(x, dt, A, B, C, D, starts=None, initial_state=None):
    """Compute the definition step by step; autograd differentiates it."""
    h = x.new_zeros(x.shape[0], *A.shape) if initial_state is None else initial_state
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None:
            h = torch.where(starts[:, t][:, None, None], 0.0, h)
        write = (dt[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        h = torch.exp(dt[:, t, :, None] * A) * h + write
        outputs.append((h * C[:, t, None, :]).sum(-1) + D * x[:, t])
    return torch.stack(outputs, 1), h


def make_inputs(length: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    values = (
        normal(ROWS, length, WIDTH),
        F.softplus(normal(ROWS, length, WIDTH) - 1.0),
        -torch.exp(normal(WIDTH, STATES)),
        normal(ROWS, length, STATES),
        normal(ROWS, length, STATES),
        normal(WIDTH),
        normal(ROWS, WIDTH, STATES),
    )
    return {name: v.requires_grad_() for name, v in zip(NAMES, values, strict=True)}


def make_starts(length: int, resets: list[int]) -> Tensor:
    """Return starts: ``resets`` in row 0; row 1 is one document that began before."""
    starts = torch.zeros(ROWS, length, dtype=torch.bool)
    starts[0, [r for r in resets if -length <= r < length]] = True
    return starts


def outputs_and_gradients(scan, inputs, starts) -> list[Tensor]:
    outputs = scan(**inputs, starts=starts)
    generator = torch.Generator().manual_seed(9)
    weights = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    loss = sum((o * w.to(o.dtype)).sum() for o, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(loss, list(inputs.values()))]


@pytest.mark.parametrize("resets", RESETS)
@pytest.mark.parametrize("length", [1, 2, 16, 37])
def test_scan_is_the_recurrence(length, resets):
    inputs, starts = make_inputs(length), make_starts(length, RESETS[resets])
    expected = outputs_and_gradients(reference_selective_scan, inputs, starts)
    got = outputs_and_gradients(selective_scan, inputs, starts)
    for name, a, b in zip(("y", "final", *NAMES), got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("length", [257, 300])
def test_longer_sequences_store_states_further_apart(length):
    """Beyond 256 tokens a chunk has 16 tokens; 257 leaves a last chunk of one token."""
    inputs, starts = make_inputs(length), make_starts(length, [32, 63, 256])
    expected = outputs_and_gradients(reference_selective_scan, inputs, starts)
    got = outputs_and_gradients(selective_scan, inputs, starts)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("resets", ["none", "around a chunk edge", "every token"])
@pytest.mark.parametrize("length", [17, 37, 64])
def test_groups_side_by_side_are_one_sequence(length, resets):
    """As on a GPU, groups of 16 tokens are a row each, and the last group is padded."""
    inputs, starts = make_inputs(length), make_starts(length, RESETS[resets])
    expected = outputs_and_gradients(reference_selective_scan, inputs, starts)
    got = outputs_and_gradients(partial(selective_scan, group=16), inputs, starts)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@needs.compiler
@pytest.mark.parametrize("resets", ["none", "around a chunk edge"])
def test_compiled_pieces_are_the_recurrence(resets):
    """300 tokens are chunks of two pieces of 8, and a last piece of 4, which is not compiled."""
    inputs, starts = make_inputs(300), make_starts(300, RESETS[resets])
    expected = outputs_and_gradients(reference_selective_scan, inputs, starts)
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_gradients(partial(selective_scan, fused=True), inputs, starts)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_groups_launch_no_more_than_two_of_them_would():
    """Each step is one bmm: 1,024 tokens in parallel groups of 32, which run twice, take 64."""
    inputs = {k: v.detach() for k, v in make_inputs(1024).items()}
    with torch.profiler.profile() as profile:
        selective_scan(**inputs, group=32)
    assert sum(event.name == "aten::bmm" for event in profile.events()) == 64


def test_starts_and_initial_state_are_optional():
    inputs = make_inputs(21)
    del inputs["initial_state"]
    expected = outputs_and_gradients(reference_selective_scan, inputs, None)
    for a, b in zip(outputs_and_gradients(selective_scan, inputs, None), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_each_output_may_be_used_alone():
    inputs = make_inputs(19)
    for i in (0, 1):
        wanted = [v for k, v in inputs.items() if i == 0 or k not in ("C", "D")]
        got = torch.autograd.grad(selective_scan(**inputs)[i].square().sum(), wanted)
        expected = reference_selective_scan(**inputs)[i].square().sum()
        for a, b in zip(got, torch.autograd.grad(expected, wanted), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gradcheck():
    inputs, starts = make_inputs(18), make_starts(18, [5, 16])

    def scan(*values):
        return selective_scan(*values[:6], starts, values[6])

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=True)


def test_float32_is_within_its_rounding():
    """Errors are below 1e-4 of a result's largest entry: float32 keeps 6e-8, over 100 tokens."""
    exact, starts = make_inputs(100), make_starts(100, [40])
    expected = outputs_and_gradients(reference_selective_scan, exact, starts)
    single = {k: v.detach().float().requires_grad_() for k, v in exact.items()}
    for a, b in zip(outputs_and_gradients(selective_scan, single, starts), expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 1e-4 * b.abs().max()


def test_bfloat16_inputs_keep_a_float32_state():
    """Only inputs and outputs are rounded: the state itself adds nothing to bfloat16's 2^-8."""
    rounded = {k: v.detach().bfloat16() for k, v in make_inputs(200).items()}
    y, final = selective_scan(**rounded)
    exact_y, exact_final = selective_scan(**{k: v.double() for k, v in rounded.items()})
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.double(), exact_y, rtol=2**-8, atol=1e-4)
    torch.testing.assert_close(final.double(), exact_final, rtol=1e-4, atol=1e-5)


def test_autocast_does_not_reach_into_the_scan():
    inputs = {k: v.detach().float().requires_grad_() for k, v in make_inputs(40).items()}
    expected = outputs_and_gradients(selective_scan, inputs, None)
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_gradients(selective_scan, inputs, None)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_nothing_crosses_a_document_boundary():
    """Documents of 1, 15, 20 and 4 tokens: perturbing one changes no output of another, and the
    gradient of one's outputs with respect to another's inputs is exactly zero."""
    length, firsts = 40, [0, 1, 16, 36]
    inputs = make_inputs(length)
    starts = make_starts(length, firsts)
    y, _ = selective_scan(**inputs, starts=starts)
    tokens = ("x", "dt", "B", "C")
    for first, end in zip(firsts, [*firsts[1:], length], strict=True):
        grads = torch.autograd.grad(
            y[0, first:end].square().sum(), [inputs[n] for n in tokens], retain_graph=True
        )
        for name, grad in zip(tokens, grads, strict=True):
            assert grad[0, first:end].abs().sum() > 0, name
            assert grad[0, :first].abs().sum() == grad[0, end:].abs().sum() == 0, name
        changed = {k: v.detach().clone() for k, v in inputs.items()}
        for name in tokens:
            changed[name][0, first:end] *= 2.0
        difference = (selective_scan(**changed, starts=starts)[0] - y)[0].abs().sum(-1)
        assert difference[first:end].min() > 0
        assert difference[:first].sum() == difference[end:].sum() == 0


def test_state_carries_on_across_calls():
    inputs = {k: v.detach() for k, v in make_inputs(37).items()}
    h, outputs, start = inputs.pop("initial_state"), [], 0
    expected, final = selective_scan(**inputs, initial_state=h)
    for length in (20, 1, 1, 15):
        now = slice(start, start + length)
        part = {k: v[:, now] if k in ("x", "dt", "B", "C") else v for k, v in inputs.items()}
        y, h = selective_scan(**part, initial_state=h)
        outputs.append(y)
        start += length
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, final, rtol=1e-12, atol=1e-12)


def test_operator_is_what_it_tells_the_compiler():
    """torch checks schema, shapes and strides without data, and autograd registration."""
    x, dt, A, B, C, _, h = (v.detach().float() for v in make_inputs(20).values())
    inputs = [v.contiguous().requires_grad_() for v in (x, dt, A.mT, B, C, h.mT)]
    for reset in (None, make_starts(20, [3])):
        torch.library.opcheck(_scan, (*inputs, reset, 16, False))


def test_a_compiled_caller_has_one_graph():
    inputs, starts = make_inputs(18), make_starts(18, [5])

    def caller(starts, **values):
        y, final = selective_scan(**values, starts=starts)
        return torch.tanh(y), final

    compiled = torch.compile(caller, backend="aot_eager", fullgraph=True)
    expected = outputs_and_gradients(caller, inputs, starts)
    for a, b in zip(outputs_and_gradients(compiled, inputs, starts), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
