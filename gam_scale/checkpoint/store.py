"""The checkpoints of one run: save, list, load, keep the last few and the best."""

import errno
import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.fetch import fetched
from gam_scale.checkpoint.fit import check_parameters
from gam_scale.checkpoint.merge import IndexWriter
from gam_scale.checkpoint.names import BEST, CHECKPOINTS, name_of, step_of
from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.verify import CONFIG, STATE, TOKENIZER
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import (
    partial_folder,
    partial_path,
    publish,
    remove_leftovers,
    write_bytes,
    write_json,
)
from gam_scale.remote import as_url, is_url
from gam_scale.strict import read_record, to_dict


@dataclass
class _Best:
    step: int
    val_loss: float | None  # null where it was not finite


class CheckpointStore:
    """A run's checkpoints in ``folder/step-00000100/`` and so on; the newest is the run's state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index_writer = IndexWriter()

    def steps(self) -> list[int]:
        """Return the steps that have a whole checkpoint, ascending; other names are the user's."""
        if not self.folder.is_dir():
            return []
        named = {step_of(path.name): path for path in self.folder.iterdir()}
        return sorted(s for s, path in named.items() if s is not None and path.is_dir())

    def path(self, step: int) -> Path:
        """The folder of one step's checkpoint."""
        return self.folder / name_of(step)

    def latest(self) -> Path | None:
        """The newest checkpoint, if there is one."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def best_step(self) -> int | None:
        """The step of the lowest validation loss, whether or not its checkpoint is here."""
        note = self.folder / BEST
        return read_record(_Best, note).step if note.is_file() else None

    def best(self) -> Path | None:
        """The checkpoint of the lowest validation loss, if one was kept."""
        step = self.best_step()
        return self.path(step) if step is not None and self.path(step).is_dir() else None

    def begin(self, step: int) -> Path:
        """Make a folder for all ranks to write their shards of ``step`` into."""
        with saving(self.path(step)):
            return partial_folder(self.path(step))

    def commit(self, n_ranks: int, state: TrainState, config: RunConfig, tokenizer: bytes) -> Path:
        """Turn what ``n_ranks`` ranks have written since :meth:`begin` into a checkpoint.

        A kill at any instant before this returns leaves the earlier checkpoints as they were.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        final = self.path(state.step)
        folder = partial_path(final)
        with saving(final):
            checksums = self._index_writer.write(folder, n_ranks)
            write_json(folder / STATE, asdict(state))
            write_json(folder / CONFIG, to_dict(config))
            write_bytes(folder / TOKENIZER, tokenizer)
            publish(final, checksums)
        return final

    def mark_best(self, step: int, val_loss: float | None) -> None:
        """Record that ``step``'s checkpoint is the best so far."""
        write_json(self.folder / BEST, asdict(_Best(step, val_loss)))

    def set_aside(self, step: int, why: str) -> None:
        """Rename a checkpoint to ``WHY-step-...``: it no longer counts, but can be looked at."""
        aside = self.folder / f"{why}-step-{step:08d}"
        names = itertools.chain([aside], (Path(f"{aside}.{n}") for n in itertools.count(2)))
        self.path(step).rename(next(name for name in names if not name.exists()))

    def remove_leftovers(self) -> None:
        """Remove what killed saves left unfinished; for a run's only writer, before it saves."""
        for pattern in (".step-*.partial", ".step-*.removed"):
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        remove_leftovers(self.folder)

    def prune(self, keep_last: int, keep_steps: Sequence[int] = ()) -> None:
        """Remove all but the newest ``keep_last`` checkpoints, the best and ``keep_steps``."""
        best = self.best()
        for step in self.steps()[:-keep_last]:
            if self.path(step) != best and step not in keep_steps:
                # Renamed first: a kill midway must not leave a folder that looks whole.
                doomed = self.folder / f".step-{step:08d}.removed"
                shutil.rmtree(doomed, ignore_errors=True)
                self.path(step).rename(doomed)
        for doomed in self.folder.glob(".step-*.removed"):
            shutil.rmtree(doomed, ignore_errors=True)


def resolve(path: str | Path, cache: Path | None = None) -> Path:
    """Return the checkpoint folder that ``path`` means: itself, or a run directory's newest.

    Args:
        path: a folder, or the URL of one, which is fetched.
        cache: where copies of what is at URLs are kept; None: below the user's cache folder.

    Raises:
        UserError: there is no checkpoint there.
    """
    if is_url(path):
        return fetched(as_url(path), cache)
    path = Path(path)
    if (path / STATE).is_file():
        return path
    for folder in (path / CHECKPOINTS, path):
        if newest := CheckpointStore(folder).latest():
            return newest
    raise UserError(f"{path} holds no checkpoint; expected a run directory or a step-* folder")


def best_checkpoint(path: str | Path) -> Path:
    """Return a run directory's checkpoint of the lowest validation loss.

    Raises:
        UserError: ``path`` is no run directory, or has no best checkpoint.
    """
    if is_url(path):
        return fetched(as_url(path), best=True)
    for folder in (Path(path) / CHECKPOINTS, Path(path)):
        if best := CheckpointStore(folder).best():
            return best
    raise UserError(
        f"{path} has no best checkpoint; expected a run directory whose checkpoint.keep_best is "
        "true and which was validated, or its newest, without --best"
    )


def load_config_of(checkpoint: Path) -> RunConfig:
    """The complete configuration that a checkpoint was trained with."""
    return read_record(RunConfig, checkpoint / CONFIG)


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Copy a checkpoint's parameters into a ``model`` that one process holds whole.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    tensors, parameters = CanonicalTensors(checkpoint), dict(model.named_parameters())
    shapes = {key: shape for key, (shape, _) in tensors.content().items()}
    check_parameters(checkpoint, shapes, {name: p.shape for name, p in parameters.items()})
    tensors.load_into(Shard.whole(PARAM, name, p.detach()) for name, p in parameters.items())


@contextmanager
def saving(final: Path) -> Iterator[None]:
    """Turn a failure to write checkpoint ``final`` into a UserError; remove what was written."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(partial_path(final), ignore_errors=True)
        kept = CheckpointStore(final.parent).steps()
        last = f"the last good one is step {kept[-1]}" if kept else "there is no earlier one"
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise UserError(f"{final}: checkpoint not saved ({reason}); {last}") from None
