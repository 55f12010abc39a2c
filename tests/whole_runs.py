"""Whole runs inside the tests' process: to train one, to kill one, to compare two."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.shard import KINDS
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.config.rules import check
from gam_scale.files import CHECKSUMS, checksum, seal, write_json
from gam_scale.strict import from_dict
from gam_scale.train.loop import Loop, Outcome
from gam_scale.train.pretrain import pretrain
from gam_scale.train.saver import WRITER


def train(config: dict, *, fresh: bool = False) -> None:
    """As tools/pretrain.py does with ``config`` in a file."""
    parsed = from_dict(RunConfig, config)
    check(parsed)
    pretrain(parsed, fresh=fresh)


@contextmanager
def after_step(step: int, action: Callable[[], object]) -> Iterator[None]:
    """Runs inside do ``action`` once ``step`` is done."""
    original = Loop._after_step

    def act(self) -> Outcome | None:
        outcome = original(self)
        if self.state.step == step:
            action()
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_after_step", act)
        yield


@contextmanager
def killed_after(step: int) -> Iterator[None]:
    """The run inside ends once ``step`` is done, as a killed process does."""

    class Death(BaseException):
        pass

    def die() -> None:
        raise Death

    with after_step(step, die), pytest.raises(Death):
        yield
    for thread in threading.enumerate():  # a process takes its threads along
        if thread.name == WRITER:
            thread.join()


def last_tensors(run_dir: Path) -> dict[str, torch.Tensor]:
    """Parameters and moments of a run's newest checkpoint, by kind and name."""
    tensors = CanonicalTensors(CheckpointStore(run_dir / "checkpoints").latest())
    return {
        f"{kind}.{name}": tensors.whole(kind, name)
        for kind in KINDS
        for name in tensors.keys("param")
    }


def assert_equal_runs(one: Path, other: Path, curve: Callable[[Path], list[dict]]) -> None:
    """Losses, weights and moments, bit for bit."""
    assert curve(one) == curve(other)
    ours, theirs = last_tensors(one), last_tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def reseal(checkpoint: Path) -> None:
    """Give a checkpoint that was changed the right sums, as who means harm would."""
    files = [path for path in checkpoint.iterdir() if path.name != CHECKSUMS]
    sums = {path.name: checksum(path) for path in files}
    write_json(checkpoint / CHECKSUMS, {"format": 2, "files": sums, "seal": seal(sums)})
