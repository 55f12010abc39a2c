"""Saving while training goes on: copy, write in a thread, commit at a later step boundary."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from gam_scale.checkpoint.canonical import write_shards
from gam_scale.checkpoint.carried import write_carried
from gam_scale.checkpoint.shard import Shard
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore, saving
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import partial_path
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.world import World
from gam_scale.train.mirror import Mirror

WRITER = "checkpoint writer"
"""Name of the threads that write checkpoints."""


@dataclass
class _Pending:
    state: TrainState
    is_best: bool
    thread: threading.Thread
    error: Exception | None = None


class Saver:
    """Saves checkpoints in the background, at most one at a time.

    Training stands still only while its state is copied to CPU memory. Each rank then writes its
    own shard in a thread; no thread takes part in collectives. :meth:`finish` is the collective
    that makes the checkpoint visible; the loop calls it once all ranks are :attr:`ready`.

    Args:
        check_lock: called on the main rank before each write that others would see; it ends a
            process that has lost the run directory's lock.
        mirror: receives every checkpoint that was committed.
    """

    def __init__(
        self,
        store: CheckpointStore,
        world: World,
        config: RunConfig,
        tokenizer: bytes,
        check_lock: Callable[[], None] = lambda: None,
        mirror: Mirror | None = None,
    ) -> None:
        self.store, self.world, self.config, self.tokenizer = store, world, config, tokenizer
        self.check_lock, self.mirror = check_lock, mirror
        self._pending: _Pending | None = None

    @property
    def ready(self) -> bool:
        """Whether this rank has written a shard that is not committed yet."""
        return self._pending is not None and not self._pending.thread.is_alive()

    def start(
        self,
        shards: list[Shard],
        state: TrainState,
        *,
        is_best: bool,
        carried: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Begin to save; called by all ranks at the same step.

        Args:
            shards: views of the engine's memory, which may change again once this returns.
            state: the train state that belongs to ``shards``.
            is_best: whether the checkpoint has the run's lowest validation loss.
            carried: the states of this rank's rows, if rows carry state.
        """
        self.finish()
        final = self.store.path(state.step)
        # Only the main rank looks: over NFS a host remembers for a minute what it did not find.
        if agreed(self.world, final.exists):
            if is_best and self.world.is_main:  # it was saved before it was evaluated
                self.store.mark_best(state.step, state.best_val_loss)
            return
        if self.world.is_main:
            self.check_lock()
            self.store.begin(state.step)
        copies = [replace(part, data=_to_cpu(part)) for part in map(Shard.own_part, shards)]
        carried = {key: value.to("cpu", copy=True) for key, value in carried.items()}
        self.world.barrier()  # from here on the folder is there
        thread = threading.Thread(
            target=self._write, args=(final, copies, carried), name=WRITER, daemon=True
        )
        self._pending = _Pending(state, is_best, thread)
        thread.start()
        if not self.config.checkpoint.background:
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written, and commit the checkpoint; called by all ranks alike.

        Raises:
            UserError: a rank could not write; raised on every rank.
        """
        pending = self._pending
        if pending is None:
            return
        pending.thread.join()
        self._pending = None
        self._agree(pending.error)
        error: Exception | None = None
        if self.world.is_main:
            try:
                self._commit(pending)
            except OSError as said:
                error = UserError(f"{self.store.folder} cannot be written: {said}")
            except Exception as said:  # any error: the other ranks wait for this one
                error = said
        self._agree(error)
        if self.mirror is not None:
            self.mirror.add(pending.state.step)

    def _commit(self, pending: _Pending) -> None:
        self.check_lock()
        self.store.commit(self.world.world_size, pending.state, self.config, self.tokenizer)
        if pending.is_best:
            self.store.mark_best(pending.state.step, pending.state.best_val_loss)
        settings = self.config.checkpoint
        leaving = self.mirror.uploading if self.mirror is not None else ()
        self.store.prune(settings.keep_last, [*settings.keep_steps, *leaving])

    def _agree(self, error: Exception | None) -> None:
        failed = self.world.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise UserError("checkpoint not saved: another rank says why; expected all to write")

    def _write(self, final: Path, copies: list[Shard], carried: dict[str, Tensor]) -> None:
        world = self.world
        try:
            with saving(final):
                write_shards(partial_path(final), world.rank, world.world_size, copies)
                if carried:
                    write_carried(partial_path(final), world.rank, carried)
        except Exception as error:  # any error: this rank's part is not whole
            assert self._pending is not None
            self._pending.error = error


def _to_cpu(part: Shard) -> Tensor:
    # Row-major, as in files: a matrix decomposition may return its results column-major.
    return part.data.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
