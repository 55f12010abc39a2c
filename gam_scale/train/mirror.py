"""The copy of a run at a URL: checkpoints go there in the background, and come back from there.

The folder at the URL is laid out as a run directory. Every rank uploads the files that are its
share of a checkpoint; once all have, rank 0 uploads the records (config, metrics, counts of starts)
and then the checkpoint's ``checksums.json``, by which alone it counts there. No thread takes part
in collectives: ranks agree between two steps, in the sum that they make anyway.
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
from gam_scale.checkpoint.fetch import CHECKPOINTS, checkpoints_in, whole_steps
from gam_scale.checkpoint.names import BEST, name_of
from gam_scale.config import CheckpointConfig
from gam_scale.files import CHECKSUMS, write_json
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.world import World
from gam_scale.remote import Remote
from gam_scale.run.directory import RunDir
from gam_scale.train.uploads import Uploads

logger = logging.getLogger("gam_scale")

WAKE_S = 0.2
"""Between looks at uploads that a run's end waits for."""
END_PATIENCE = 10
"""Times ``checkpoint.mirror_wait_s`` that a finished run waits; nobody is about to kill it."""
NOTE = "mirror.json"
"""Names the run: at the URL, where it says who writes there too, and in the run directory."""
BELOW = ("logs/wandb_id", f"{CHECKPOINTS}/{BEST}")
"""Records in folders of the run directory."""


class Mirror:
    """Uploads a run's checkpoints, one at a time; the newest first where several wait.

    All ranks call its methods alike.

    Args:
        remote: the run's folder at a URL.
        name: of the run there, in :data:`NOTE`.
    """

    def __init__(
        self, run: RunDir, world: World, settings: CheckpointConfig, remote: Remote, name: str
    ) -> None:
        self._run, self._world, self._settings, self._remote = run, world, settings, remote
        self._name, self._writer = name, ""
        self._uploads = Uploads(remote)
        self._step: int | None = None  # whose checkpoint is on its way
        self._sealing = False
        self._waiting: list[int] = []
        self._lost, self._is_off = False, False

    @property
    def uploading(self) -> Sequence[int]:
        """The step whose files are still to be there, whatever else is removed."""
        return () if self._step is None else (self._step,)

    def begin(self, *, wipe: bool = False) -> None:
        """Say who writes at the URL from now on, and upload what is only here.

        Args:
            wipe: first remove the earlier run there, as ``--fresh`` does here.
        """
        self._writer, self._waiting = agreed(self._world, partial(self._open, wipe))
        if self._world.is_main:  # the count of starts, for one
            self._uploads.begin(self._put_records)
        self._next()

    def add(self, step: int) -> None:
        """Upload a checkpoint that was saved just now; one that is pruned before is left out."""
        if self._is_off:
            return
        kept = agreed(self._world, self._run.checkpoints.steps)
        self._waiting = sorted({*self._waiting, step}.intersection(kept))
        if self._step is None:
            self._next()

    def ballot(self) -> bool:
        """Whether this rank's part of what is under way is done."""
        return self._step is not None and self._uploads.done

    def agreed(self, total: float) -> None:
        """Go on once all ranks' ballots are true."""
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
            self._next()

    def finish(self, asked_to_stop: Callable[[], bool]) -> None:
        """Wait for what is on its way, not for ever; then upload the records once more.

        Args:
            asked_to_stop: whether a signal has asked this process to: its time is short then.
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

    def _next(self) -> None:
        if not self._waiting or self._is_off:
            return
        self._step, self._sealing = self._waiting.pop(), False
        rank, ranks = self._world.rank, self._world.world_size
        folder = self._run.checkpoints.path(self._step)
        names = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS)
        # A rank's own file, where as many ranks saved it, has the rank's number in the order.
        shards = [name for name in names if name.endswith(".safetensors")]
        others = [name for name in names if name not in shards] if rank == 0 else []
        self._uploads.begin(partial(self._put_part, folder, [*shards[rank::ranks], *others]))

    def _open(self, wipe: bool) -> tuple[str, list[int]]:
        """Clear away what killed starts left at the URL; our name there, and what is only here."""
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
        """Upload a rank's share, but first remove the seal of a checkpoint that had this step.

        There is one where steps were done anew, from a checkpoint before a damaged one.
        """
        if not self._is_taken_over():
            self._remote.remove([f"{CHECKPOINTS}/{folder.name}/{CHECKSUMS}"])
        self._put_files(folder, names)

    def _put_files(self, folder: Path, names: list[str]) -> None:
        """Upload files; those that are there at another attempt are not uploaded again."""
        while names:
            if self._is_taken_over() or not folder.is_dir():  # set aside as damaged: never sealed
                return
            self._remote.put(folder / names[0], f"{CHECKPOINTS}/{folder.name}/{names[0]}")
            del names[0]

    def _seal(self, step: int) -> None:
        """Upload what makes a checkpoint one; by rank 0, once all the files are there."""
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
        """Upload all that a run directory has beside checkpoints and logs."""
        if self._is_taken_over():
            return
        names = records_in(self._run.path)
        for name in names:
            self._remote.put(self._run.path / name, name)
        gone = [name for name in self._remote.sizes() if is_record(name) and name not in names]
        self._remote.remove(gone)  # a summary, say, of a run that goes on

    def _prune(self) -> None:
        """Remove at the URL what the settings do not keep, by the rule of the run directory."""
        there = checkpoints_in(self._remote.sizes())
        last = whole_steps(there)[-self._settings.keep_last :]
        keep = {*last, *self._settings.keep_steps, self._run.checkpoints.best_step()}
        for step in whole_steps(there):
            if step not in keep:
                self._remove(step, there[step])

    def _remove(self, step: int, names: Sequence[str] | dict[str, int]) -> None:
        """The seal first: a kill midway must not leave what looks whole."""
        order = sorted(names, key=lambda name: name != CHECKSUMS)
        self._remote.remove(f"{CHECKPOINTS}/{name_of(step)}/{name}" for name in order)

    def _is_taken_over(self) -> bool:
        """Whether another start writes at the URL now, as after a node was given up for dead."""
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
    """Whether a file of a run, by its name in the directory, goes along to another machine."""
    alone = "/" not in name and not name.startswith(".") and name not in (NOTE, "anneal-now")
    return alone or name in BELOW


def records_in(folder: Path) -> list[str]:
    """The records that a run directory has."""
    names = [*(path.name for path in folder.iterdir()), *BELOW]
    return sorted(name for name in names if is_record(name) and (folder / name).is_file())


def read_note(content: bytes | None) -> dict[str, Any]:
    """What :data:`NOTE` says; nothing where it is missing, or no note of ours."""
    try:
        note = json.loads(content or b"{}")
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
