"""Test float32 gradients at documents' first tokens, where states are empty, against float64.

A norm without a floor turns a value next to zero into its sign: its gradient has no bound, and
rounding decides the result.
"""

import pytest
import torch
from closeness import off, worst
from small import BY_CHANNEL, PUBLISHED_RAVEN, WHOLE, small

from gam_scale.config import GAMConfig, MemoryConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.mixers import mamba2
from gam_scale.model.parts import implementations

LONE_HEAD = {"kind": "mamba2", "d_state": 4}
"""A layer whose only head is as wide as its group of channels."""
RAVEN = PUBLISHED_RAVEN | {"n_slots": 6, "top_k": 2, "router_noise": 0.0}
KINDS = [*implementations(), WHOLE, BY_CHANNEL, RAVEN]
T, VOCAB = 24, 11
SILENT = 0
"""A token whose embedding is a row of zeros, as in a padded vocabulary."""


def make_model(kind: str | dict, paths: str, n_heads: int) -> torch.nn.Module:
    if isinstance(kind, dict):
        kind = kind | {"paths": paths, "n_heads": n_heads}
        kind |= {"n_value_heads": 2 * n_heads} if "n_value_heads" in kind else {}
    config = small(
        kind,
        vocab_size=VOCAB,
        gam=GAMConfig(n_slots=6, paths=paths),
        memory=MemoryConfig(n_heads=n_heads, n_slots=6, top_k=2),
    )
    model = build_model(config, seed=0)
    with torch.no_grad():
        model.embedding.weight[SILENT] = 0
    return model


def gradients(model: torch.nn.Module, starts: list[int]) -> list[torch.Tensor]:
    """Return gradients of the losses at the first two tokens of every document.

    In the first row SILENT is each document's first token, in the second row its second.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, wanted = torch.randint(1, VOCAB, (2, 3, T), generator=generator)
    first = torch.tensor(starts)
    tokens[0, first] = tokens[1, first + 1] = SILENT
    targets = torch.full((3, T), -100)
    for where in (first, first + 1):
        targets[:, where] = wanted[:, where]
    positions = torch.arange(T) - first[torch.bucketize(torch.arange(T), first, right=True) - 1]
    model(tokens, targets, Layout.of(positions.expand(3, -1))).backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("paths", ["both", "global"])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_at_first_tokens_are_those_of_float64(kind, paths):
    for n_heads in (2, 8):
        for starts in ([0], [0, 1, 2, 3, 12]):
            single = gradients(make_model(kind, paths, n_heads), starts)
            double = gradients(make_model(kind, paths, n_heads).double(), starts)
            what = f"{n_heads} heads, documents at {starts}"
            largest = worst(float(x.norm()) for x in double)
            assert largest < 1e12, f"a gradient without bound, {largest:.1e}: {what}"
            wrong = worst(off(a, b) for a, b in zip(single, double, strict=True))
            assert wrong < 1e-4, f"float32's gradients are off by {wrong:.1e}: {what}"


def test_the_skip_weight_of_a_lone_head_is_as_exact_as_its_terms(monkeypatch):
    """Compare D's gradient with the terms that cancel in it; all others are as exact as ever.

    At a document's first token, a head's read-out is a multiple of its input x, as D x is. If a
    norm sees nothing else, D decides only the size, which the norm removes, so D's gradient is the
    remainder of terms ten thousand times as large. Even in a float64 model, rounding the norm's
    input to float32 moves this gradient by up to 3e-4.
    """
    terms = []

    def watched(x, *others):
        y, final = mamba2_ssd(x, *others)
        y.register_hook(lambda grad: terms.append(float((grad * x.detach()).abs().sum())))
        return y, final

    mamba2_ssd = mamba2.ssd
    for starts in ([0], [0, 1, 2, 3, 12]):
        model, exact_model = (build_model(small(LONE_HEAD, vocab_size=VOCAB), 0) for _ in range(2))
        single = gradients(model, starts)
        with monkeypatch.context() as patched:
            patched.setattr(mamba2, "ssd", watched)
            double = gradients(exact_model.double(), starts)
        for (name, _), a, b in zip(model.named_parameters(), single, double, strict=True):
            if name.endswith(".D"):
                assert abs(float(a - b)) < 1e-7 * terms.pop(), f"{name}, documents at {starts}"
            else:
                assert off(a, b) < 1e-4, f"{name}, documents at {starts}"
    assert not terms
