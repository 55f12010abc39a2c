"""What a run logs at its start: a long first step is under way; its data is read many times."""

import logging
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from whole_runs import hooked, train

from gam_scale.config import RunConfig
from gam_scale.parallel.compilation import Compilation
from gam_scale.parallel.world import World
from gam_scale.strict import from_dict
from gam_scale.train.hooks.first_step import THREAD, FirstStep
from gam_scale.train.loop import Hook
from gam_scale.train.pretrain import _announce
from gam_scale.train.reading import RunData


@pytest.fixture
def said(caplog, monkeypatch):
    """Return ``said()``, which returns all that was logged so far."""
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    caplog.set_level(logging.INFO, "gam_scale")
    return lambda: caplog.text


def test_a_long_first_step_says_that_it_is_under_way_until_it_is_done(said):
    done, until = [], time.monotonic() + 60
    lines = SimpleNamespace(leave_out_start=lambda: done.append(1))
    loop = SimpleNamespace(strategy=SimpleNamespace(compilation=Compilation("eager")))
    first, loop.is_first = FirstStep(lines, every_s=0.01), True
    first.before_batch(loop)
    while "is under way" not in said():
        assert time.monotonic() < until, "a first step that takes long says nothing"
    first.between(loop)
    first.end(loop, None)
    assert done == [1] and "which compiles the blocks, is under way" in said()
    assert "compiled blocks" in said() and not speaks(), "the sentences go on after the step"


def test_a_first_step_that_fails_ends_the_sentences(tmp_path, tiny):
    class Fails(Hook):
        def before_step(self, loop, batches):
            assert speaks()
            raise KeyError

    with pytest.raises(KeyError), hooked(Fails()):
        train(tiny(tmp_path / "run"))
    assert not speaks(), "the sentences go on after the step"


def speaks() -> bool:
    return THREAD in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(("sequences", "warned"), [(2, True), (80, False)])
def test_data_that_is_read_over_and_over_is_warned_of(tiny, tmp_path, said, sequences, warned):
    config = from_dict(RunConfig, tiny(tmp_path, model={"vocab_size": 320}, train={"steps": 100}))
    world = World(0, 1, 0, 1, torch.device("cpu"))
    stream = SimpleNamespace(epochs=lambda stages: stages[0].steps * 4 / sequences)
    _announce(config, world, RunData([], [], stream, None))
    assert ("the data is read 200 times over" in said()) == warned, f"epochs unsaid: {said()}"
