"""Blocks compile into one graph or say why not; no uncompiled run is called compiled."""

import logging

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter

from gam_scale import pulse
from gam_scale.config import ModelConfig
from gam_scale.errors import UserError
from gam_scale.model.lm import build_model
from gam_scale.parallel.blocks import prepare_blocks

CONFIG = ModelConfig(d_model=16, n_layers=2, vocab_size=23, max_seq_len=16, dropout=0.0)


def broken_backend(graph, inputs):
    raise OSError("no such compiler\nand more")


def loss(model):
    tokens = torch.arange(17)[None]
    return model(tokens[:, :-1], tokens[:, 1:].contiguous())


@pytest.fixture
def model():
    torch._dynamo.reset()
    return build_model(CONFIG, 0)


def cut_in_two(model):
    """Break the graph of the first block, as an operation does that no graph can hold."""
    inner = model.blocks[0].forward

    def forward(*args):
        torch._dynamo.graph_break()
        return inner(*args)

    model.blocks[0].forward = forward


def test_what_is_compiled_is_counted(model):
    compilation = prepare_blocks(model, "selective", compiled=True, backend=CompileCounter())
    loss(model)
    with torch.no_grad():
        loss(model)
    assert str(compilation) == "compiled blocks: 2 graphs, no breaks" and compilation.is_on


def test_each_length_is_compiled_once_and_seen_to_go_on(model):
    """As in a run's stages, lengths vary: a new one adds a graph, and a known one costs nothing."""
    compilation = prepare_blocks(model, "none", compiled=True, backend=CompileCounter())
    known, counts = pulse.beats(), []
    for length in (8, 16, 16, 8):
        tokens = torch.arange(length + 1)[None]
        model(tokens[:, :-1], tokens[:, 1:].contiguous())
        counts.append(compilation.graphs)
    assert counts == [1, 2, 2, 2]
    assert pulse.beats() - known >= 2 * 2, "a watchdog would take it for a hang"


def test_uncompiled_blocks_are_called_so(model):
    compilation = prepare_blocks(model, "none", compiled=False)
    loss(model)
    assert str(compilation) == "blocks run uncompiled: torch.compile is not used"


@pytest.mark.parametrize("recompute", ["none", "selective"])
@pytest.mark.parametrize("what", ["break", "backend"])
def test_a_run_that_may_goes_on_uncompiled_and_says_why(
    caplog, monkeypatch, model, what, recompute
):
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    expected = loss(model)
    backend = broken_backend if what == "backend" else CompileCounter()
    if what == "break":
        cut_in_two(model)
    compilation = prepare_blocks(model, recompute, compiled=True, may_fail=True, backend=backend)
    found = loss(model)
    found.backward()
    assert torch.equal(found, expected) and not compilation.is_on
    # A single record, though several handlers may have passed it to caplog.
    (record,) = {each for each in caplog.records if each.name == "gam_scale"}
    said = "no such compiler" if what == "backend" else "graph_break"
    assert said in record.message and record.message.startswith("blocks run uncompiled: ")
    assert "and more" not in str(compilation)


@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_backward_pass_that_cannot_be_compiled_is_found_in_time(model, recompute):
    backend = aot_autograd(fw_compiler=lambda graph, _: graph, bw_compiler=broken_backend)
    compilation = prepare_blocks(model, recompute, compiled=True, may_fail=True, backend=backend)
    loss(model).backward()
    assert "no such compiler" in str(compilation) and not compilation.is_on


@pytest.mark.parametrize("what", ["break", "backend"])
def test_else_it_ends_with_a_sentence(model, what):
    if what == "break":
        cut_in_two(model)
    backend = broken_backend if what == "backend" else CompileCounter()
    prepare_blocks(model, "selective", compiled=True, backend=backend)
    with pytest.raises(UserError, match="cannot be compiled: .*; expected train.compile auto"):
        loss(model)
