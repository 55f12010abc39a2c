"""The files of a prepared set: in its folder, or copied from a URL to a cache."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gam_scale.data.manifest import MANIFEST_FILE, ShardInfo, verify_shard
from gam_scale.data.mds import import_streaming
from gam_scale.errors import UserError
from gam_scale.files import partial_folder, put_in_place
from gam_scale.remote import KEY_LENGTH, cache_key, is_url, patiently

SHARD_SUFFIX = ".mds"


def cache_folder(cache_dir: str, in_run: Path) -> Path:
    """Return the folder for local copies of remote sets.

    Args:
        cache_dir: ``data.cache_dir``, which counts unless it is empty.
        in_run: the folder in the run directory, which counts where GAM_SCRATCH is not set.
            GAM_SCRATCH names a folder on the node's own disk; jobs on Slurm set it.
    """
    if cache_dir:
        return Path(cache_dir)
    scratch = os.environ.get("GAM_SCRATCH")
    return Path(scratch) / f"gam-cache-{os.getuid()}" if scratch else in_run


class SetFiles:
    """Where the files of a set are: in its own folder, or in a cache filled from a URL.

    Args:
        path: the folder or URL.
        cache_dir: folder for the copies of all sets at URLs.
        limit: most bytes of shards there, as far as one process knows; 0: no limit. After each
            download the shards that were not opened for the longest time are deleted.
    """

    def __init__(self, path: str, cache_dir: Path, limit: float = 0.0) -> None:
        self.url = path.rstrip("/") if is_url(path) else None
        self.folder = cache_dir / cache_key(path) if self.url else Path(path)
        self._cache_dir, self._limit = cache_dir, limit

    def get(self, name: str, check: Callable[[Path, str], None] | None = None) -> Path:
        """Return the local path of ``name``; ``check(path, url)`` is called on a new download."""
        target = self.folder / name
        if self.url and not target.exists():
            _download_once(f"{self.url}/{name}", target, check)
            if self._limit:
                make_room(self._cache_dir, self._limit, target)
        elif self.url and self._limit:
            with suppress(FileNotFoundError):
                os.utime(target)  # it is in use
        return target

    @contextmanager
    def renewable(self) -> Iterator[None]:
        """Add to an error about a cached file how to download the file again."""
        try:
            yield
        except UserError as error:
            if not self.url:
                raise
            message = f"{error} (cached from {self.url}: delete {self.folder} to download it again)"
            raise UserError(message) from None


def make_room(cache_dir: Path, limit: float, newest: Path) -> None:
    """Delete the shards in a cache that were not opened for the longest time, down to ``limit``.

    Processes that still read a deleted shard keep it until they close it.

    Args:
        cache_dir: folder of the cache, with a folder for each set.
        limit: bytes of shards to keep.
        newest: a shard that stays.
    """
    found = []
    for path in cache_dir.glob(f"{'[0-9a-f]' * KEY_LENGTH}/*/*{SHARD_SUFFIX}"):
        with suppress(FileNotFoundError):  # another process makes room, too
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    excess = sum(size for _, size, _ in found) - limit
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            excess -= size


def _download_once(url: str, target: Path, check: Callable[[Path, str], None] | None) -> None:
    """Download ``url`` to ``target``, unless another process has done so or is doing so."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # O_NOFOLLOW, because others may write to the folder and put a link there.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.fdopen(os.open(target.with_name(f".{target.name}.lock"), flags, 0o666), "rb")
    except OSError as error:
        raise UserError(
            f"{target.parent}: cannot be written ({error.strerror}); expected data.cache_dir to be "
            "a folder that can"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(
                f"{target.parent}: its files cannot be locked ({error.strerror}); expected "
                "data.cache_dir to be on a disk of this host's own"
            ) from None
        if target.exists():
            return
        # Download into a folder, because some downloaders put temporary files beside their target.
        # Whatever is in it already was left by a process that was killed.
        folder = partial_folder(target)
        try:
            _download(url, folder / target.name)
            if check is not None:
                check(folder / target.name, url)
            put_in_place(folder / target.name, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _download(url: str, target: Path) -> None:
    downloader = import_streaming().base.storage.CloudDownloader
    source = url.removeprefix("file://")
    try:
        patiently(
            lambda: downloader.direct_download(source, str(target)),
            again=lambda: target.unlink(missing_ok=True),
        )
    except Exception as error:  # every service's client raises its own kinds
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise UserError(
                f"{target.parent}: no space is left for {url}; expected data.cache_dir on a "
                "larger disk, or a lower data.cache_limit_gb"
            ) from error
        raise UserError(
            f"{url}: cannot be downloaded ({type(error).__name__}: {error}); expected the URL of a "
            "prepared set that this machine may read"
        ) from error


def verify_download(path: Path, url: str, info: ShardInfo) -> None:
    try:
        verify_shard(path, info, hashes=True)
    except UserError:
        raise UserError(
            f"{url}: is not the shard that {MANIFEST_FILE} lists (truncated or changed); copy the "
            "prepared set there again"
        ) from None
