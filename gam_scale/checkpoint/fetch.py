"""Checkpoints at a URL: find those that are whole, fetch them to this machine and verify them."""

import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath

from gam_scale.checkpoint.names import BEST, CHECKPOINTS, name_of, step_of
from gam_scale.checkpoint.verify import check_file, read_checksums
from gam_scale.errors import UserError
from gam_scale.files import CHECKSUMS, put_in_place
from gam_scale.remote import Remote, as_url, cache_key, patiently

Sizes = dict[str, int]
"""Bytes of each file, by name."""


def checkpoints_in(sizes: Sizes, folder: str = CHECKPOINTS) -> dict[int, Sizes]:
    """Return the listed files of each step's checkpoint in ``folder``, whole or not, by step."""
    found: dict[int, Sizes] = {}
    for path, size in sizes.items():
        where, name = PurePosixPath(path).parent, PurePosixPath(path).name
        step = step_of(where.name)
        if step is not None and where.parent == PurePosixPath(folder):
            found.setdefault(step, {})[name] = size
    return found


def whole_steps(checkpoints: dict[int, Sizes]) -> list[int]:
    """Return the steps of whole checkpoints, ascending: those with the list of their checksums.

    That list is written last and removed first.
    """
    return sorted(step for step, files in checkpoints.items() if CHECKSUMS in files)


def take_checksums(remote: Remote, folder: Path) -> None:
    """Begin to fetch a checkpoint: fetch the list of its files into ``folder``.

    Raises:
        UserError: the list cannot be read, or is damaged.
    """
    try:
        patiently(lambda: remote.get(CHECKSUMS, folder / CHECKSUMS))
        read_checksums(folder)
    except Exception as error:
        raise _not_fetched(remote, error) from None


def take_files(remote: Remote, folder: Path, part: int = 0, n_parts: int = 1) -> None:
    """Fetch the files of a checkpoint whose list is in ``folder`` already, and check each.

    Args:
        remote: the checkpoint's URL.
        folder: to fetch into.
        part: which of ``n_parts`` shares of the files to fetch, so that ranks can divide them.
        n_parts: how many shares there are.

    Raises:
        UserError: a file is missing, or not what was saved.
    """
    try:
        sums = read_checksums(folder)
        for name in sorted(sums)[part::n_parts]:
            patiently(lambda name=name: _take(remote, folder, name, sums))  # type: ignore[misc]
    except Exception as error:
        raise _not_fetched(remote, error) from None


def fetched(url: str, cache: Path | None = None, *, best: bool = False) -> Path:
    """Return a local copy of the checkpoint that a URL means, fetched unless it is there already.

    Args:
        url: of a step-* folder, or of a run, whose newest whole checkpoint is meant.
        cache: where copies are kept; None: below the user's cache folder.
        best: take the run's checkpoint of the lowest validation loss, not the newest.

    Raises:
        UserError: there is no such checkpoint, or it cannot be read.
    """
    remote = _find(Remote(url, "the checkpoint"), best=best)
    try:
        seal = patiently(lambda: remote.read(CHECKSUMS))
    except Exception as error:
        raise _not_fetched(remote, error) from None
    sealed = cache_key(f"{remote.url} {seal!r}")
    folder = copies_of(url, cache) / sealed / PurePosixPath(remote.url).name
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".fetching-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder.parent} cannot be written: {error.strerror}") from None
    try:
        take_checksums(remote, partial)
        take_files(remote, partial)
        put_in_place(partial, folder, synced=False)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def copies_of(url: str, cache: Path | None) -> Path:
    """Return the folder in which :func:`fetched` keeps copies of what is at a URL."""
    return (cache or _users_cache()) / cache_key(as_url(url))


def _find(remote: Remote, *, best: bool) -> Remote:
    """Return the checkpoint that the URL means: the one there, or the run's newest or best."""
    try:
        sizes = patiently(remote.sizes)
        note = patiently(lambda: remote.read(f"{CHECKPOINTS}/{BEST}")) if best else None
    except Exception as error:
        raise remote.failed(error, "read") from None
    if CHECKSUMS in sizes and not best:
        return remote
    noted = _step_noted(note)
    for folder in (CHECKPOINTS, ""):
        steps = whole_steps(checkpoints_in(sizes, folder))
        if best:  # only a run has a note of the best
            steps = [step for step in steps if step == noted]
        if steps:
            return remote.below(f"{folder}/{name_of(steps[-1])}".lstrip("/"))
    raise UserError(
        f"{remote.url} holds no {'best' if best else 'whole'} checkpoint; expected the URL of a "
        "run that checkpoint.mirror wrote, or of a step-* folder in it"
    )


def _step_noted(note: bytes | None) -> int | None:
    """Return the step of the best checkpoint, if the note has one."""
    with suppress(ValueError):
        said = json.loads(note or b"{}")
        return said.get("step") if isinstance(said, dict) else None
    return None


def _take(remote: Remote, folder: Path, name: str, sums: dict[str, str]) -> None:
    remote.get(name, folder / name)
    check_file(folder, name, sums)


def _not_fetched(remote: Remote, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return UserError(f"{remote.url}, fetched: {error}")
    return remote.failed(error, "read")


def _users_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gam_scale" / CHECKPOINTS
