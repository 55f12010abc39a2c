"""The garbage collector during a run: it is off, and called only after certain steps."""

import gc

import pytest
import torch
from whole_runs import Setting, after_step, hooked, train

from gam_scale.train.hooks.garbage import Garbage


def test_it_runs_after_some_steps_only_and_is_given_back(tmp_path, tiny):
    runs, on = [], []
    note = lambda phase, info: runs.append(info["generation"]) if phase == "start" else None  # noqa: E731

    def look():
        on.append(gc.isenabled())
        gc.callbacks.append(note)

    try:
        with (
            hooked(Setting(Garbage, every=6)),
            after_step(1, look),
            after_step(13, lambda: gc.callbacks.remove(note)),
        ):
            train(tiny(tmp_path / "run"))
    finally:
        gc.callbacks[:] = [each for each in gc.callbacks if each is not note]
    assert on == [False] and runs == [2, 2]  # after steps 6 and 12
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_an_error_gives_it_back_too(tmp_path, tiny):
    def fail():
        raise RuntimeError("for a test")

    with after_step(2, fail), pytest.raises(RuntimeError, match="for a test"):
        train(tiny(tmp_path / "run"))
    assert gc.isenabled() and gc.get_freeze_count() == 0


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_no_tensor_waits_for_it(tmp_path, tiny, recompute):
    """No tensor is in a cycle, or memory would grow from one collection to the next."""

    def keep():
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)

    found = []

    def count():
        gc.collect()
        gc.set_debug(0)
        found.append([each for each in gc.garbage if isinstance(each, torch.Tensor)])
        gc.garbage.clear()

    model = {"layers": ["delta", "static"], "memory": {"n_heads": 2}}
    quiet = {"eval": {"every_steps": 0}, "checkpoint": {"every_steps": 100}}
    config = tiny(tmp_path / "run", model=model, **quiet)
    config["train"] |= {"steps": 10, "recompute": recompute}
    try:
        with after_step(5, keep), after_step(9, count):
            train(config)
    finally:
        gc.set_debug(0)
    assert found == [[]]
