"""A step gives the device its work and goes on: nothing in it waits for a result."""

import json
import math
from collections import Counter
from typing import get_args

import pytest
import torch
from engines import ENGINES, EVERYWHERE
from host_waits import host_waits
from whole_runs import assert_equal_runs, train

from gam_scale.config import LayerKind
from gam_scale.errors import UserError
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.train.loop import Loop

SEEN_BY_DEEPSPEED = {"zero3": ["_local_scalar_dense"]}
"""It makes a tensor of the number it is shown for a norm, and looks at that; in CPU memory."""


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The loop as it is where results come later than the host."""
    monkeypatch.setattr(Loop, "_is_computed", False)


@pytest.fixture
def waits_of_steps(monkeypatch):
    """What each step waited for, in the runs of a test."""
    found, original = [], Loop._step

    def step(self, batches):
        with host_waits() as waits:
            outcome = original(self, batches)
        found.append(waits.found)
        return outcome

    monkeypatch.setattr(Loop, "_step", step)
    return found


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_no_engines_step_waits_for_the_device(tmp_path, tiny, as_on_a_gpu, waits_of_steps, engine):
    train(tiny(tmp_path / "run", train={"steps": 6}, parallel=ENGINES[engine]))
    # The first one also makes what the engine keeps.
    assert waits_of_steps[1:] == [SEEN_BY_DEEPSPEED.get(engine, [])] * 5


@pytest.mark.parametrize("kind", get_args(LayerKind))
def test_no_kind_of_layer_waits_for_the_device(tmp_path, tiny, as_on_a_gpu, waits_of_steps, kind):
    """In its portable form; an operator's inside is not looked at."""
    model = {"layers": [kind], "memory": {"n_heads": 2, "n_slots": 8, "top_k": 2}}
    model |= {"attention": {"n_heads": 2}, "mamba": {"d_state": 4, "expand": 2}}
    model |= {"position": "none" if kind == "mamba" else "rotary"}
    train(tiny(tmp_path / "run", model=model, train={"steps": 3}))
    assert waits_of_steps[1:] == [[], []]


def test_waits_are_counted(tmp_path):
    x = torch.arange(4.0)
    with host_waits() as waits:
        float(x[0]), bool(x[0]), x.tolist(), x.cpu(), x[x > 1], x.nonzero()
    waited = Counter(waits.found)
    assert waited == {"_local_scalar_dense": 2, "tolist": 1, "cpu": 1, "index": 1, "nonzero": 1}


def test_between_lines_steps_wait_neither(tmp_path, tiny, monkeypatch, as_on_a_gpu):
    """Between steps, too: metrics are read where a line is due, and nowhere else."""
    found, after = {}, Loop._after_step

    def after_step(self):
        with host_waits() as waits:
            outcome = after(self)
        found[self.state.step] = len(waits.found)
        return outcome

    monkeypatch.setattr(Loop, "_after_step", after_step)
    quiet = {"eval": {"every_steps": 0}, "checkpoint": {"every_steps": 100}}
    train(tiny(tmp_path / "run", train={"steps": 12}, **quiet))
    assert {step for step, waits in found.items() if waits} == {1, 4, 8, 12}


def spoil(monkeypatch, *calls):
    """The gradients of these steps, counted from 1, get a norm that is no number."""
    done, original = [], PlainStrategy._clip

    def clip(self, max_norm):
        done.append(1)
        norm = original(self, max_norm)
        return norm * math.nan if len(done) in calls else norm

    monkeypatch.setattr(PlainStrategy, "_clip", clip)


def test_a_late_look_sees_the_same_run(tmp_path, tiny, monkeypatch, curve):
    for name in ("at once", "late"):
        with monkeypatch.context() as patch:
            spoil(patch, 3, 6, 7, 13)
            if name == "late":
                patch.setattr(Loop, "_is_computed", False)
            train(tiny(tmp_path / name))
    assert_equal_runs(tmp_path / "at once", tmp_path / "late", curve)
    for name in ("at once", "late"):
        path = tmp_path / name / "checkpoints" / "step-00000020" / "state.json"
        assert json.loads(path.read_text())["optimizer_steps"] == 16
    log = (tmp_path / "late" / "logs" / "rank0.log").read_text()
    assert "1 of the steps 2 to 4 skipped" in log


def test_too_many_skipped_steps_end_the_run_at_the_next_line(
    tmp_path, tiny, monkeypatch, as_on_a_gpu
):
    spoil(monkeypatch, *range(5, 8))
    said = "3 steps in a row, the last one 7, had no finite gradient"
    with pytest.raises(UserError, match=said):
        train(tiny(tmp_path / "run", train={"max_skipped_steps": 3}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]
