"""Test effective context: clearing the memory k tokens ago shows how far a model sees."""

from functools import partial

import numpy as np
import pytest
import torch

from gam_scale.evaluate.effective_context import (
    Cleared,
    EffectiveContext,
    contexts,
    effective_context,
    windows_of,
)
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.token_loss import token_losses


def windows(length=64, count=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 31, length + 1) for _ in range(count)]


def rises(model, ks):
    found = effective_context(partial(token_losses, model), windows(), ks, targets=5)
    return found, {c.context: c.rise for c in found.cleared}


def test_a_static_gam_of_six_layers_sees_thirteen_tokens_and_no_more(small_model):
    found, rise = rises(small_model("gam", n_layers=6), [1, 4, 12, 13, 16, 32])
    for k in (13, 16, 32):
        assert abs(rise[k].mean) < 1e-5 and rise[k].high < 1e-5
    assert all(abs(rise[k].mean) > 1e-3 for k in (1, 4))
    assert abs(rise[12].mean) > 1e-6  # the thirteenth token still counts
    assert found.full.mean > 0


def test_attention_sees_everything(small_model):
    _, rise = rises(small_model("attention"), [1, 13, 32])
    assert all(abs(r.mean) > 1e-4 for r in rise.values())


def test_the_same_targets_are_scored_at_every_k(by_rule):
    """The model sees the last token only, so nothing depends on k and the loss is the table's."""
    table = torch.randn(31, 31, generator=torch.Generator().manual_seed(0))
    model = by_rule(31, lambda tokens: table[tokens])
    found = effective_context(partial(token_losses, model), windows(), contexts(64), targets=7)
    assert [c.context for c in found.cleared] == [1, 2, 4, 8, 16, 32]
    assert [c.rise.mean for c in found.cleared] == pytest.approx([0.0] * 6, abs=1e-6)
    where = np.linspace(32, 63, 7).round().astype(int)
    log_p = torch.log_softmax(table, -1)
    expected = np.mean([-float(log_p[w[t], w[t + 1]]) for w in windows() for t in where])
    assert found.full.mean == pytest.approx(expected, rel=1e-5)
    assert found.least_context == 33 and found.context == 1


def test_the_smallest_context_that_suffices_must_suffice_from_there_on():
    def result(*points):
        cleared = [Cleared(k, Interval(5, 5, 5), Interval(m, m - s, m + s)) for k, m, s in points]
        return EffectiveContext(Interval(5, 5, 5), cleared, 0.01, 64, 10, 4)

    dip = result((1, 0.5, 0.1), (2, 0.005, 0.001), (4, 0.02, 0.001), (8, 0.004, 0.02), (16, 0, 0))
    assert (dip.context, dip.sure_context) == (8, 16)
    never = result((1, 0.5, 0.1), (2, 0.3, 0.1))
    assert never.context is None and never.sure_context is None


def test_windows_stay_inside_documents():
    documents = [np.arange(100), np.arange(1000, 1010), np.arange(2000, 2041)]
    found = windows_of(documents, 20, limit=99)
    assert [(w[0], w[-1]) for w in found[:2]] == [(0, 20), (20, 40)]
    assert all(len(w) == 21 and (np.diff(w) == 1).all() for w in found)
    assert len(found) == 4 + 2
    assert [w[0] for w in windows_of(documents, 20, limit=2)] == [0, 2020]
