"""Test the chunked loss against torch's cross-entropy on all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gam_scale.model.loss import (
    CHUNK_ELEMENTS,
    IGNORE,
    capped,
    chunk_rows,
    linear_cross_entropy,
)


def reference(hidden, weight, targets):
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="sum")


def problem(n, d=12, vocab=37, dtype=torch.float64, ignored=()):
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, d, generator=generator, dtype=dtype)
    weight = torch.randn(vocab, d, generator=generator, dtype=dtype)
    targets = torch.randint(vocab, (n,), generator=generator)
    targets[list(ignored)] = IGNORE
    return hidden, weight, targets


@pytest.mark.parametrize("n", [1, 5, 16, 17, 33])
@pytest.mark.parametrize("ignored", [(), (0,), (-1, 0)])
def test_loss_and_gradients_match_over_ragged_chunks(monkeypatch, n, ignored):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 37 * 16)  # chunks of 16 tokens
    hidden, weight, targets = problem(n, ignored=ignored if n > 1 else ())
    grads = []
    for function in (linear_cross_entropy, reference):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = function(h, w, targets)
        (value * 0.37).backward()
        grads.append((value.detach(), h.grad, w.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)  # float64 rounding


def test_without_gradients_it_is_the_same_number(monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 37 * 4)
    hidden, weight, targets = problem(11, ignored=(3,))
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(value, reference(hidden, weight, targets), rtol=1e-12, atol=0)


def test_all_targets_ignored_is_zero_with_zero_gradients():
    hidden, weight, targets = problem(4, ignored=range(4))
    hidden.requires_grad_()
    value = linear_cross_entropy(hidden, weight, targets)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_confident_wrong_predictions_stay_finite():
    hidden = torch.tensor([[1e4, 0.0]], requires_grad=True)
    weight = torch.eye(2)
    value = linear_cross_entropy(hidden, weight, torch.tensor([1]))
    value.backward()
    assert value.item() == pytest.approx(1e4)
    assert torch.isfinite(hidden.grad).all()


def test_autocast_computes_in_bf16_and_sums_in_fp32():
    hidden, weight, targets = problem(64, d=32, vocab=101, dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = linear_cross_entropy(hidden, weight, targets)
    value.backward()
    assert value.dtype == torch.float32 and weight.grad.dtype == torch.float32
    # bf16 keeps 8 bits: logits of size ~6 are off by up to 0.02, the mean loss by far less.
    assert value.item() == pytest.approx(reference(hidden, weight, targets).item(), rel=1e-2)


def test_chunks_by_device():
    assert chunk_rows(8192, 32_768, "cpu") == 128
    assert chunk_rows(8192, 32_768, "cuda") == 4096
    assert chunk_rows(8192, 10_000, "cuda") == 8192
    assert chunk_rows(1, 10**9, "cuda") == 1


class Copies(TorchDispatchMode):
    """Records the shape and dtype of each tensor that is cast."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func == torch.ops.aten._to_copy.default:
            self.shapes.append((tuple(out.shape), out.dtype))
        return out


@pytest.mark.parametrize("needs_grad", [True, False])
def test_the_head_is_cast_once_for_all_chunks(needs_grad):
    hidden, weight, targets = problem(64, d=32, vocab=101, dtype=torch.float32)
    weight.requires_grad_(needs_grad)
    with Copies() as copies, torch.autocast("cpu", torch.bfloat16):
        linear_cross_entropy(hidden, weight, targets, rows=16)
    assert copies.shapes.count(((101, 32), torch.bfloat16)) == 1
    assert ((101, 32), torch.float32) not in copies.shapes


def written_out(hidden, weight, targets, softcap, z_loss):
    """Return the loss and the z-loss minimised beside it, from all logits at once."""
    logits = hidden @ weight.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    there = targets != IGNORE
    drift = torch.logsumexp(logits, -1)[there].square().sum()
    return F.cross_entropy(logits[there], targets[there], reduction="sum"), z_loss * drift


@pytest.mark.parametrize("ignored", [(), (0, 7, 16)])
@pytest.mark.parametrize("softcap", [0.0, 2.5])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
def test_a_cap_and_a_z_loss_have_autograds_gradients(softcap, z_loss, ignored):
    hidden, weight, targets = problem(17, ignored=ignored)
    grads = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            value = linear_cross_entropy(h, w, targets, 5, softcap=softcap, z_loss=z_loss)
            (value * 0.37).backward()
        else:
            value, beside = written_out(h, w, targets, softcap, z_loss)
            ((value + beside) * 0.37).backward()
        grads.append((value.detach(), h.grad, w.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)  # float64 rounding
    with torch.no_grad():
        value = linear_cross_entropy(hidden, weight, targets, 5, softcap=softcap, z_loss=z_loss)
    torch.testing.assert_close(value, grads[1][0], rtol=1e-12, atol=0)


def test_a_cap_and_a_z_loss_under_autocast_are_near_the_exact_ones():
    hidden, weight, targets = problem(64, d=32, vocab=101, dtype=torch.float32, ignored=(3,))
    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    value, beside = written_out(*exact, targets, 5.0, 1e-2)
    (value + beside).backward()
    hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        near = linear_cross_entropy(hidden, weight, targets, 16, softcap=5.0, z_loss=1e-2)
    near.backward()
    assert near.item() == pytest.approx(value.item(), rel=1e-2)
    for ours, theirs in zip((hidden, weight), exact, strict=True):
        off = (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()
        assert off < 0.02  # 8 bits of logits and of their gradient, some of which cancels


def test_a_cap_keeps_every_logit_below_it():
    logits = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])
    assert torch.equal(capped(logits, 0.0), logits)
    assert capped(logits, 30.0)[[0, -1]].tolist() == [-30.0, 30.0]
    torch.testing.assert_close(capped(logits, 30.0)[1:4], logits[1:4], rtol=1e-3, atol=0)
    assert capped(logits.bfloat16(), 30.0).dtype == torch.float32
    hidden, weight, targets = problem(4)
    hidden = (hidden * 1e6).requires_grad_()
    linear_cross_entropy(hidden, weight, targets, softcap=30.0, z_loss=1.0).backward()
    # So far beyond the cap, rounding alone leaves a slope, and nothing is NaN.
    assert hidden.grad.abs().max() < 1e-12
