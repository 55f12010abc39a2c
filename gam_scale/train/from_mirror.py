"""Resuming a run from its mirror, on a machine that has nothing of the run, or less of it."""

import logging
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gam_scale.checkpoint.fetch import (
    checkpoints_in,
    take_checksums,
    take_files,
    whole_steps,
)
from gam_scale.checkpoint.names import CHECKPOINTS, name_of
from gam_scale.checkpoint.store import saving
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import partial_path, put_in_place, read_regular, write_bytes, write_json
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.world import World
from gam_scale.remote import Remote, patiently
from gam_scale.run.directory import RunDir
from gam_scale.run.restarts import begun_by_this_job, restart_number
from gam_scale.train.mirror import NOTE, Mirror, is_record, read_note

logger = logging.getLogger("gam_scale")

SETTING = "checkpoint.mirror"
PROBE = ".probe"


@dataclass(frozen=True)
class _There:
    """What the URL has for this start."""

    name: str
    """Name of the run."""
    ahead: list[int]
    """Steps of the whole checkpoints there that are newer than all here, the newest first."""
    wipe: bool = False
    """Whether ``--fresh`` is to remove everything there."""


@dataclass(frozen=True)
class Opened:
    """A mirror that is ready, and what was fetched from it."""

    mirror: Mirror
    step: int | None
    """Step of the checkpoint that was fetched; None: the mirror has none newer than here."""
    wipe: bool


def open_mirror(run: RunDir, config: RunConfig, world: World, *, fresh: bool) -> Opened | None:
    """Check ``checkpoint.mirror`` and fetch what is newer there; called by all ranks.

    This comes before the run directory is opened, which then looks as it did when the fetched
    checkpoint was uploaded.

    Returns:
        None if no mirror is configured.

    Raises:
        UserError: the URL cannot be used, holds another run, or holds damaged files.
    """
    settings = config.checkpoint
    if not settings.mirror:
        return None
    remote = Remote(settings.mirror, SETTING)
    here = run.path.resolve()
    if remote.folder is not None and remote.folder.resolve().is_relative_to(here):
        raise UserError(
            f"{SETTING} {remote.url} is in log.run_dir {here} itself; expected a folder elsewhere"
        )
    there = agreed(world, partial(_look, run, remote, fresh=fresh))
    step = None
    if there.ahead:
        agreed(world, partial(_begin, run, remote, there.name))
        step = _fetch_newest(run, remote, world, there.ahead, fall_back=settings.fall_back)
        best = agreed(world, partial(_take_records, run, remote))
        if best is not None and best < step:  # keep_best keeps it here too
            try:
                _fetch(run, remote, world, best)
            except UserError as error:
                logger.warning("the best checkpoint, of step %d, stays away: %s", best, error)
    return Opened(Mirror(run, world, settings, remote, there.name), step, there.wipe)


def _look(run: RunDir, remote: Remote, *, fresh: bool) -> _There:
    """Find out what the URL has for this run; refuse a URL that cannot be used or is another's."""
    try:
        sizes = patiently(remote.sizes)
        note = read_note(patiently(lambda: remote.read(NOTE)))
        patiently(lambda: remote.write(PROBE, b""))
        remote.remove([PROBE])
    except Exception as error:
        raise remote.failed(error, "used") from None
    theirs, whole = note.get("run"), whole_steps(checkpoints_in(sizes))
    begun = run.config.exists()
    ours = read_note(read_regular(run.mirror)).get("run") if run.mirror.exists() else None
    if not theirs and not whole:
        return _There(ours or secrets.token_hex(8), [])
    if begun and ours != theirs:
        raise UserError(
            f"{SETTING} {remote.url} holds another run than {run.path}; expected a URL of its own "
            "for each run, or an empty run directory to go on with what is there"
        )
    if begun and fresh and run.fresh_removes():
        return _There(secrets.token_hex(8), [], wipe=True)
    if not begun and fresh and not _begun_by_this_job(remote):
        raise UserError(
            f"{SETTING} {remote.url} holds a run, which --fresh removes from its own run directory "
            f"only; expected an empty URL, or no --fresh, to go on with it in {run.path}"
        )
    if not isinstance(theirs, str) or run.holds_foreign_files():
        raise UserError(
            f"{SETTING} {remote.url} holds checkpoints "
            + (f"but no {NOTE}" if not theirs else f"and {run.path} other files")
            + "; expected a run that was mirrored there, and an empty run directory"
        )
    here = (run.checkpoints.steps() or [-1])[-1]
    return _There(theirs, [step for step in reversed(whole) if step > here])


def _begun_by_this_job(remote: Remote) -> bool:
    """Whether this job, restarted by its scheduler, has itself begun the run at the URL."""
    counts = patiently(lambda: remote.read("restarts.json"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "restarts.json"
        if counts is not None:
            path.write_bytes(counts)
        return bool(restart_number()) and begun_by_this_job(path)


def _begin(run: RunDir, remote: Remote, name: str) -> None:
    """Make this the mirrored run's directory, so that a kill from here on leaves a valid one."""
    try:
        config = patiently(lambda: remote.read("config.json"))
        if config is None:
            raise UserError(f"{SETTING} {remote.url} has no config.json beside its checkpoints")
        run.path.mkdir(parents=True, exist_ok=True)
        write_bytes(run.config, config)
        write_json(run.mirror, {"run": name})
        run.checkpoints.folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"log.run_dir {run.path} cannot be written: {error}") from None


def _fetch_newest(
    run: RunDir, remote: Remote, world: World, steps: Sequence[int], *, fall_back: bool
) -> int:
    """Fetch the first of ``steps``, or with ``fall_back`` the first sound one; return its step."""
    for step in steps[:-1] if fall_back else ():
        try:
            _fetch(run, remote, world, step)
        except UserError as error:
            logger.warning("skipping step %d of the mirror: %s", step, error)
        else:
            return step
    step = steps[-1] if fall_back else steps[0]
    _fetch(run, remote, world, step)
    return step


def _fetch(run: RunDir, remote: Remote, world: World, step: int) -> None:
    """Fetch a checkpoint into the directory that all ranks share; each takes some of the files."""
    final, source = run.checkpoints.path(step), remote.below(f"{CHECKPOINTS}/{name_of(step)}")

    def begin() -> None:
        with saving(final):
            take_checksums(source, run.checkpoints.begin(step))

    agreed(world, begin)
    error: UserError | None = None
    try:
        with saving(final):
            take_files(source, partial_path(final), world.rank, world.world_size)
    except UserError as said:
        error = said
    if world.any(error is not None):
        raise error or UserError(f"{source.url} cannot be read: another rank says why")
    agreed(world, partial(put_in_place, partial_path(final), final))


def _take_records(run: RunDir, remote: Remote) -> int | None:
    """Fetch the records; return the best checkpoint's step if it is whole there, but not here."""
    try:
        sizes = patiently(remote.sizes)
        for name in filter(is_record, sizes):
            target = run.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            fetched = target.with_name(
                f".{target.name}.{os.getpid()}.tmp"
            )  # a leftover's name, so the next start removes the file after a kill
            patiently(lambda name=name, to=fetched: remote.get(name, to))  # type: ignore[misc]
            put_in_place(fetched, target)
    except Exception as error:
        raise remote.failed(error, "read") from None
    best, whole = run.checkpoints.best_step(), whole_steps(checkpoints_in(sizes))
    return best if best in whole and best not in run.checkpoints.steps() else None
