"""Within a step the host only hands work to the device and never waits for a result."""

import json
from collections import Counter
from contextlib import ExitStack

import pytest
import torch
from engines import ENGINES, EVERYWHERE
from host_waits import host_waits
from whole_runs import Setting, assert_equal_runs, hooked, spoiled, train

from gam_scale.errors import UserError
from gam_scale.model.parts import implementations
from gam_scale.train.hooks.skips import CountedSkips
from gam_scale.train.loop import Hook, Loop

SEEN_BY_DEEPSPEED = {"zero3": ["_local_scalar_dense"]}
"""By engine, the waits that DeepSpeed itself causes; none of them waits for a GPU.

DeepSpeed makes a tensor in CPU memory of the number that it is given for the norm, and reads it.
"""


class WaitsOfSteps(Hook):
    """Notes the waits of each step, from the ballot to ``between``, those of hooks included."""

    def __init__(self) -> None:
        self.found: list[list[str]] = []

    def ballot(self, loop: Loop) -> float:
        self.counting = ExitStack()
        self.waits = self.counting.enter_context(host_waits())
        return 0.0

    def between(self, loop: Loop) -> None:
        self.counting.close()
        self.found.append(self.waits.found)


class WaitsBetween(Hook):
    """Counts the waits after each step, by its number."""

    def __init__(self) -> None:
        self.found: dict[int, int] = {}

    def between(self, loop: Loop) -> None:
        self.counting = ExitStack()
        self.waits = self.counting.enter_context(host_waits())

    def over(self, loop: Loop) -> None:
        self.counting.close()
        self.found[loop.state.step] = len(self.waits.found)


@pytest.fixture
def as_on_a_gpu():
    """Have runs count skipped steps as on a GPU: late, since results lag behind the host."""
    with hooked(Setting(CountedSkips, at_once=False)):
        yield


@pytest.fixture
def waits_of_steps():
    """Yield a list to which a test's runs add the waits of each step."""
    hook = WaitsOfSteps()
    with hooked(hook):
        yield hook.found


@pytest.mark.parametrize("engine", EVERYWHERE)
def test_no_engines_step_waits_for_the_device(tmp_path, tiny, as_on_a_gpu, waits_of_steps, engine):
    # Muon leaves all that is no matrix to AdamW, so this runs both.
    options = {"steps": 6, "optimizer": "muon"}
    train(tiny(tmp_path / "run", train=options, parallel=ENGINES[engine]))
    # Not the first step, in which the engine also makes its buffers and states.
    assert waits_of_steps[1:] == [SEEN_BY_DEEPSPEED.get(engine, [])] * 5


@pytest.mark.parametrize("kind", implementations())
def test_no_kind_of_layer_waits_for_the_device(tmp_path, tiny, as_on_a_gpu, waits_of_steps, kind):
    """Layers run in their portable form; waits inside an operator are not seen."""
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


def test_between_lines_steps_wait_neither(tmp_path, tiny, as_on_a_gpu):
    """After a step, metrics are read from the device only if a line is due."""
    quiet = {"eval": {"every_steps": 0}, "checkpoint": {"every_steps": 100}}
    hook = WaitsBetween()
    with hooked(hook):
        train(tiny(tmp_path / "run", train={"steps": 12}, **quiet))
    assert {step for step, waits in hook.found.items() if waits} == {1, 4, 8, 12}


def test_a_late_look_sees_the_same_run(tmp_path, tiny, curve):
    for name in ("at once", "late"):
        late = [Setting(CountedSkips, at_once=False)] * (name == "late")
        with spoiled(3, 6, 7, 13), hooked(*late):
            train(tiny(tmp_path / name))
    assert_equal_runs(tmp_path / "at once", tmp_path / "late", curve)
    for name in ("at once", "late"):
        path = tmp_path / name / "checkpoints" / "step-00000020" / "state.json"
        assert json.loads(path.read_text())["optimizer_steps"] == 16
    log = (tmp_path / "late" / "logs" / "rank0.log").read_text()
    assert "1 of the steps 2 to 4 skipped" in log


def test_too_many_skipped_steps_end_the_run_at_the_next_line(tmp_path, tiny, as_on_a_gpu):
    said = "3 steps in a row, the last one 7, had no finite gradient"
    with spoiled(*range(5, 8)), pytest.raises(UserError, match=said):
        train(tiny(tmp_path / "run", train={"max_skipped_steps": 3}))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4]
