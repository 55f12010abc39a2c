"""One compiled graph serves every layout of a shape: other documents need no other graph."""

import numpy as np
import pytest
import torch
from small import small
from torch._dynamo.testing import CompileCounter

from gam_scale.model.carry import CarriedRows
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel.blocks import prepare_blocks

KINDS = implementations()
IN_SEGMENTS = [kind for kind in KINDS if MIXERS[kind].by_pieces]
B, T = 2, 24


def make_model(kinds, segment, position="rotary") -> tuple[LanguageModel, CompileCounter]:
    torch._dynamo.reset()
    model, counter = build_model(small(*kinds, position=position), 0), CompileCounter()
    prepare_blocks(model, "selective", compiled=True, backend=counter, segment=segment)
    return model, counter


def layouts(*, goes_on: bool = False) -> list[Layout]:
    """Return layouts with ever more document starts: from one a row (or none) to one a token."""
    rng, found = np.random.default_rng(0), []
    for density in (0.0, 0.1, 0.5, 1.0):
        starts = rng.random((B, T)) < density
        starts[:, 0] = not goes_on
        since = np.maximum.accumulate(np.where(starts, np.arange(T), -1), axis=1)
        found.append(Layout.of(np.arange(T) - since))
    return found


def step(model: LanguageModel, layout: Layout, carried: CarriedRows | None = None) -> None:
    tokens = torch.randint(23, (B, T + 1), generator=torch.Generator().manual_seed(0))
    layout = layout.turned(model.config.rotation())
    loss = model(tokens[:, :-1], tokens[:, 1:], layout, carried)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_make_no_other_graph(kind):
    model, counter = make_model([kind], segment=1 << 20)
    for layout in layouts():
        step(model, layout)
        assert counter.frame_count == 1


@pytest.mark.parametrize("kind", IN_SEGMENTS)
def test_nor_do_those_of_segments(kind):
    """There are two graphs: only the first segment starts from a state without a gradient."""
    model, counter = make_model([kind], segment=8)
    for layout in layouts():
        step(model, layout)
        assert counter.frame_count == 2


@pytest.mark.parametrize("kind", ("static", "delta"))
def test_nor_do_rows_that_go_on(kind):
    model, counter = make_model([kind], segment=1 << 20)
    carried = CarriedRows()
    for layout in layouts(goes_on=True):
        step(model, layout, carried)
    assert counter.frame_count == 1
