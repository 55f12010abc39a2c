"""The mirror of a run at a URL, to which checkpoints are uploaded in the background.

The folder at the URL is laid out like a run directory. Every rank uploads its share of a
checkpoint's files. Once all ranks have, rank 0 uploads the records (config, metrics, counts of
starts) and then the seal, ``checksums.json``: without it a checkpoint does not count. No thread
takes part in collectives: ranks agree between two steps, in the sum that they make anyway.
"""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gam_scale import pulse
from gam_scale.checkpoint.fetch import checkpoints_in, whole_steps
from gam_scale.checkpoint.names import BEST, CHECKPOINTS, name_of
from gam_scale.config import CheckpointConfig
from gam_scale.files import CHECKSUMS, write_json
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.world import World
from gam_scale.remote import Remote
from gam_scale.run.directory import RunDir
from gam_scale.train.uploads import Uploads

logger = logging.getLogger("gam_scale")

WAKE_S = 0.2
"""Seconds between looks at the uploads that a run waits for at its end."""
END_PATIENCE = 10
"""A finished run, which nobody is about to kill, waits ``checkpoint.mirror_wait_s`` this often."""
NOTE = "mirror.json"
"""File that names the run, both at the URL and in the run directory; the URL's names the writer."""
NESTED_RECORDS = ("logs/wandb_id", f"{CHECKPOINTS}/{BEST}")
"""Records that are in subfolders of the run directory."""


class Mirror:
    """Uploads a run's checkpoints, one at a time; the newest first if several wait.

    All ranks call the methods alike.

    Args:
        remote: the run's folder at a URL.
        name: the run's name there, as in :data:`NOTE`.
    """

    def __init__(
        self, run: RunDir, world: World, settings: CheckpointConfig, remote: Remote, name: str
    ) -> None:
        self._run, self._world, self._settings, self._remote = run, world, settings, remote
        self._name, self._writer = name, ""
        self._uploads = Uploads(remote)
        self._step: int | None = None  # of the checkpoint being uploaded
        self._sealing = False
        self._waiting: list[int] = []
        self._lost, self._is_off = False, False

    @property
    def uploading(self) -> Sequence[int]:
        """The step being uploaded, if any, whose local files must not be pruned."""
        return () if self._step is None else (self._step,)

    def begin(self, *, wipe: bool = False) -> None:
        """Claim the URL for this start, and begin to upload the checkpoints that are only here.

        Args:
            wipe: first remove the earlier run there, as ``--fresh`` does here.
        """
        self._writer, self._waiting = agreed(self._world, partial(self._open, wipe))
        if self._world.is_main:  # for example, the count of starts
            self._uploads.begin(self._put_records)
        self._next()

    def add(self, step: int) -> None:
        """Queue a checkpoint that was just saved; one pruned before its turn is left out."""
        if self._is_off:
            return
        self._queue(step)
        if self._step is None:
            self._next()

    def ballot(self) -> bool:
        """Return whether this rank has done its part of the upload under way."""
        return self._step is not None and self._uploads.done

    def agreed(self, total: float) -> None:
        """Once all ranks' ballots are true, seal the checkpoint, or turn to the next one."""
        if self._step is None or total < self._world.world_size:
            return
        if not self._sealing:
            self._sealing = True
            if self._world.is_main:
                self._uploads.begin(partial(self._seal, self._step))
        else:
            self._step = None
            self._is_off = agreed(self._world, lambda: self._lost)
            if self._world.is_main:
                self._run.checkpoints.prune(self._settings.keep_last, self._settings.keep_steps)
            self._queue()
            self._next()

    def finish(self, asked_to_stop: Callable[[], bool]) -> None:
        """Wait, up to a deadline, for the checkpoints under way; then upload the records again.

        Args:
            asked_to_stop: whether a signal has asked this process to stop: its time is then short.
        """
        begun, seconds = time.monotonic(), self._settings.mirror_wait_s
        patience = END_PATIENCE
        while self._step is not None:
            if patience > 1 and asked_to_stop():
                begun, patience = time.monotonic(), 1
            waited = time.monotonic() - begun
            total, late = self._world.sum(self.ballot(), waited > patience * seconds)
            if total == self._world.world_size:
                self.agreed(total)
            elif late:
                break
            else:
                time.sleep(WAKE_S)
            pulse.beat()  # the deadline, not the watchdog, ends this
        left = [*self._waiting, *self.uploading]
        if left:
            logger.warning(
                "%s lacks the checkpoint of step %s: the time was not enough "
                "(checkpoint.mirror_wait_s); the next start from this directory uploads it",
                self._remote.url,
                ", ".join(map(str, sorted(left))),
            )
        elif self._world.is_main:
            self._uploads.begin(self._put_records)
        self._uploads.stop(max(1.0, begun + patience * seconds - time.monotonic()))

    def _queue(self, *steps: int) -> None:
        """Add steps to those that wait, and leave out those that were pruned meanwhile."""
        kept = agreed(self._world, self._run.checkpoints.steps)
        self._waiting = sorted({*self._waiting, *steps}.intersection(kept))

    def _next(self) -> None:
        if not self._waiting or self._is_off:
            return
        self._step, self._sealing = self._waiting.pop(), False
        rank, ranks = self._world.rank, self._world.world_size
        folder = self._run.checkpoints.path(self._step)
        names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
        # If as many ranks saved the checkpoint, each rank's share is the shard that it wrote.
        shards = [name for name in names if name.endswith(".safetensors")]
        others = [name for name in names if name not in shards] if rank == 0 else []
        self._uploads.begin(partial(self._put_part, folder, [*shards[rank::ranks], *others]))

    def _open(self, wipe: bool) -> tuple[str, list[int]]:
        """Clean the URL of killed starts' leftovers and claim it.

        Returns:
            This writer's token, and the steps of the checkpoints that are only here.
        """
        remote, writer = self._remote, secrets.token_hex(8)
        note = {"run": self._name, "writer": writer, "host": socket.gethostname()}
        try:
            remote.remove_leftovers()
            sizes = remote.sizes()
            there = checkpoints_in(sizes)
            whole = [] if wipe else whole_steps(there)
            for step in there.keys() - set(whole):
                self._remove(step, there[step])
            remote.remove(name for name in sizes if wipe and is_record(name))
            remote.write(NOTE, json.dumps(note | {"process": os.getpid()}).encode())
        except Exception as error:
            raise remote.failed(error, "written") from None
        write_json(self._run.mirror, {"run": self._name})
        return writer, sorted(set(self._run.checkpoints.steps()) - set(whole))

    def _put_part(self, folder: Path, names: list[str]) -> None:
        """Upload a rank's share, after removing the seal of an older checkpoint of this step.

        There is such a checkpoint if a run has fallen back from a damaged one and repeated steps.
        """
        if not self._is_taken_over():
            self._remote.remove([f"{CHECKPOINTS}/{folder.name}/{CHECKSUMS}"])
        self._put_files(folder, names)

    def _put_files(self, folder: Path, names: list[str]) -> None:
        """Upload files, taking each off ``names`` so that another attempt does not repeat it."""
        while names:
            if self._is_taken_over() or not folder.is_dir():  # set aside as damaged: never sealed
                return
            self._remote.put(folder / names[0], f"{CHECKPOINTS}/{folder.name}/{names[0]}")
            del names[0]

    def _seal(self, step: int) -> None:
        """Upload what is still missing, the seal last; by rank 0, once all ranks have uploaded."""
        folder = self._run.checkpoints.path(step)
        if self._is_taken_over() or not folder.is_dir():
            return
        there = checkpoints_in(self._remote.sizes()).get(step, {})
        files = {path.name: path.stat().st_size for path in folder.iterdir()}
        lacking = [n for n, size in files.items() if n != CHECKSUMS and there.get(n) != size]
        self._put_files(folder, lacking)
        self._put_records()
        self._put_files(folder, [CHECKSUMS])
        self._prune()

    def _put_records(self) -> None:
        """Upload the run directory's records, and remove those at the URL that are gone here."""
        if self._is_taken_over():
            return
        names = records_in(self._run.path)
        for name in names:
            self._remote.put(self._run.path / name, name)
        gone = [name for name in self._remote.sizes() if is_record(name) and name not in names]
        self._remote.remove(gone)  # for example, the summary of a run that goes on

    def _prune(self) -> None:
        """Remove the checkpoints at the URL that the run directory's settings would not keep."""
        there = checkpoints_in(self._remote.sizes())
        last = whole_steps(there)[-self._settings.keep_last :]
        keep = {*last, *self._settings.keep_steps, self._run.checkpoints.best_step()}
        for step in whole_steps(there):
            if step not in keep:
                self._remove(step, there[step])

    def _remove(self, step: int, names: Sequence[str] | dict[str, int]) -> None:
        """Remove a checkpoint, its seal first: a kill midway must leave none that looks whole."""
        order = sorted(names, key=lambda name: name != CHECKSUMS)
        self._remote.remove(f"{CHECKPOINTS}/{name_of(step)}/{name}" for name in order)

    def _is_taken_over(self) -> bool:
        """Whether another start writes at the URL now: this node may have been taken for dead."""
        note = read_note(self._remote.read(NOTE))
        if note.get("writer", self._writer) != self._writer and not self._lost:
            self._lost = True
            logger.error(
                "%s is written by %s, on %s: nothing more goes there from here",
                self._remote.url,
                "another start of this run" if note.get("run") == self._name else "another run",
                note.get("host"),
            )
        return self._lost


def is_record(name: str) -> bool:
    """Whether a file, by its name in the run directory, is a record that the mirror copies."""
    alone = "/" not in name and not name.startswith(".") and name not in (NOTE, "anneal-now")
    return alone or name in NESTED_RECORDS


def records_in(folder: Path) -> list[str]:
    """Return the names of the records that a run directory has."""
    names = [*(path.name for path in folder.iterdir()), *NESTED_RECORDS]
    return sorted(name for name in names if is_record(name) and (folder / name).is_file())


def read_note(content: bytes | None) -> dict[str, Any]:
    """Return the content of a :data:`NOTE`; empty if it is missing or no JSON object."""
    try:
        note = json.loads(content or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
