"""Train, kill and compare whole runs inside the tests' process."""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints import whole

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.config.rules import check
from gam_scale.files import CHECKSUMS, checksum, seal, write_json
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import from_dict
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.pretrain import pretrain
from gam_scale.train.saver import WRITER
from gam_scale.train.uploads import UPLOADER

_HOOKS: list[Hook] = []
"""Hooks that :func:`train` adds to a run; see :func:`hooked`."""


def train(config: dict, *, fresh: bool = False, anneal: int = 0) -> None:
    """Train as tools/pretrain.py does with ``config`` in a file."""
    parsed = from_dict(RunConfig, config)
    check(parsed)
    pretrain(parsed, fresh=fresh, hooks=list(_HOOKS), anneal=anneal)


def measured(prefix: str, run: Path) -> dict[int, dict[str, float]]:
    """Return the logged values whose keys begin with ``prefix``, by step, where there are any."""
    lines = read_metrics(run / "metrics.jsonl")
    found = {
        line["step"]: {k: v for k, v in line.items() if k.startswith(prefix)} for line in lines
    }
    return {step: figures for step, figures in found.items() if figures}


@contextmanager
def hooked(*hooks: Hook) -> Iterator[None]:
    """Add these hooks to the runs trained inside."""
    before = len(_HOOKS)
    _HOOKS.extend(hooks)
    try:
        yield
    finally:
        del _HOOKS[before:]


class After(Hook):
    """Calls an action once a step is over, unless that step ended the run."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self._step, self._action = step, action

    def over(self, loop: Loop) -> None:
        if loop.state.step == self._step and loop.outcome is None:
            self._action()


class Setting(Hook):
    """Sets attributes of the run's only hook of one type when training starts."""

    def __init__(self, kind: type[Hook], **values: object) -> None:
        self._kind, self._values = kind, values

    def start(self, loop: Loop) -> None:
        (hook,) = (each for each in loop.hooks if isinstance(each, self._kind))
        for name, value in self._values.items():
            assert hasattr(hook, name)
            setattr(hook, name, value)


def after_step(step: int, action: Callable[[], object]) -> AbstractContextManager[None]:
    """Make runs trained inside call ``action`` once ``step`` is done."""
    return hooked(After(step, action))


@contextmanager
def spoiled(*steps: int) -> Iterator[None]:
    """Put NaN into the gradients of these steps, counted from 1 over all runs inside."""
    done, original = [], PlainStrategy.backward

    def backward(self, batch, scale, *, last):
        loss = original(self, batch, scale, last=last)
        done.extend([1] * last)
        if last and len(done) in steps:
            next(self.module.parameters()).grad.fill_(math.nan)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainStrategy, "backward", backward)
        yield


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """End the run inside once ``step`` is done, as if its process were killed."""

    class Death(BaseException):
        pass

    def die() -> None:
        raise Death

    with after_step(step, die), pytest.raises(Death):
        yield
    for thread in threading.enumerate():  # none outlives a killed process
        if thread.name in (WRITER, UPLOADER):
            thread.join()


def last_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Return the parameters and states of a run's newest checkpoint, by ``kind.name``."""
    tensors = CanonicalTensors(CheckpointStore(run_dir / "checkpoints").latest())
    return {key: whole(tensors, key) for key in tensors.tensors}


def assert_equal_runs(one: Path, other: Path, curve: Callable[[Path], list[dict]]) -> None:
    """Assert that two runs have equal losses, weights and moments, bit for bit."""
    assert curve(one) == curve(other)
    ours, theirs = last_tensors(one), last_tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def reseal(checkpoint: Path) -> None:
    """Give a changed checkpoint valid checksums, as an attacker would."""
    files = [path for path in checkpoint.iterdir() if path.name != CHECKSUMS]
    sums = {path.name: checksum(path) for path in files}
    write_json(checkpoint / CHECKSUMS, {"format": 2, "files": sums, "seal": seal(sums)})
