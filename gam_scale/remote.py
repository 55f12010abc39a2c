"""Files at a URL, in an object store or on a disk, through fsspec; failures become a sentence.

A file appears whole or not at all: an object store shows an object once all of it has come, and on
a disk the file is renamed into place.
"""

import errno
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from gam_scale.errors import UserError, one_line
from gam_scale.files import write_bytes
from gam_scale.pulse import beat

T = TypeVar("T")

KEY_LENGTH = 16
"""Hexadecimal digits of a :func:`cache_key`."""
RETRY_SECONDS = (1.0, 5.0, 25.0)
"""Waits between attempts to read what should be there."""
HOPELESS = (FileNotFoundError, PermissionError, ImportError, ValueError)
"""Errors that another attempt would meet too: a wrong name, missing rights, a missing client."""
HOPELESS_TOO = {"NoCredentialsError", "PartialCredentialsError", "RefreshError"}
"""More such errors, by name: their classes are in clients that may not be installed."""
PASSING = {"LocalEntryNotFoundError"}
"""Errors that may pass though their kind is among those: huggingface_hub's for a hub that does not
answer is a FileNotFoundError."""
PATIENCE = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}
"""Time-outs of an S3 client, whose own defaults take minutes."""
ON_DISK = ("file", "local")
"""Kinds of URL whose files are on this machine."""
KINDS = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, file:///FOLDER or another URL that fsspec knows"
EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of setup.cfg that has the client for a kind of URL."""


def is_url(path: str | Path) -> bool:
    """Return whether ``path`` is a URL, of a server or as in ``file://``, rather than a path."""
    return re.match(r"[a-z][a-z0-9+.-]*:/", str(path)) is not None


def as_url(path: str | Path) -> str:
    """Restore a URL that was turned into a ``Path``, which merges adjacent slashes into one."""
    kind, _, rest = str(path).partition(":/")
    return f"{kind}://{'/' * (kind in ON_DISK)}{rest.lstrip('/')}"


def cache_key(url: str) -> str:
    """Return the name of the folder in which copies of what is at a URL are kept."""
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:KEY_LENGTH]


def patiently(call: Callable[[], T], again: Callable[[], object] = lambda: None) -> T:
    """Return what ``call`` returns at one of several attempts; call ``again`` before a further one.

    Raises:
        Exception: that of the last attempt, or the first that is :data:`HOPELESS`.
    """
    for wait in RETRY_SECONDS:
        try:
            return call()
        except Exception as error:  # every service's client raises its own kinds
            if _is_hopeless(error):
                raise
            again()
            time.sleep(wait)
    return call()


def _is_hopeless(error: Exception) -> bool:
    kind = type(error).__name__
    full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    return kind in HOPELESS_TOO or full or (isinstance(error, HOPELESS) and kind not in PASSING)


class Remote:
    """The folder at a URL, whose files have relative names such as ``a/b.json``.

    Methods raise whatever the service's client does; :meth:`failed` makes a sentence of it.

    Args:
        url: ``s3://``, ``gs://``, ``file://``, or of another kind that fsspec has.
        setting: what the user called it, for messages.

    Raises:
        UserError: no such kind of URL, or its client is not installed.
    """

    def __init__(self, url: str, setting: str) -> None:
        import fsspec  # here, since it takes a tenth of a second and few commands need it

        if not is_url(url):
            raise UserError(f"{setting} is {url}; expected {KINDS}")
        self.url, self.setting = as_url(url).rstrip("/"), setting
        kind, _, place = self.url.partition("://")
        if not place:
            raise UserError(f"{setting} {url} names no folder; expected {KINDS}")
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if kind in ("s3", "s3a"):
            options["config_kwargs"] = PATIENCE
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            extra = EXTRAS.get(kind)
            how = f"python3 tools/bootstrap.py --extras {extra}" if extra else "pip install it"
            raise UserError(
                f"{setting} {url}: the client for {kind}:// is not installed ({error}); {how}"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{setting} {url} is no URL of a known kind ({error}); expected {KINDS}"
            ) from None
        self._root = self._root.rstrip("/")
        self._on_disk = kind in ON_DISK

    @property
    def folder(self) -> Path | None:
        """The folder's path on a disk of this machine; None if it is at a server."""
        return Path(self._root) if self._on_disk else None

    def below(self, name: str) -> "Remote":
        """Return the folder ``name`` in this one."""
        other = copy(self)
        other.url, other._root = f"{self.url}/{name}", self._path(name)
        return other

    def failed(self, error: Exception, done: str = "reached") -> UserError:
        """Return what a method has raised as a UserError, in a sentence."""
        said = one_line(" ".join(str(error).split()), 240)
        return UserError(
            f"{self.setting} {self.url} cannot be {done} ({type(error).__name__}: {said}); "
            "expected a URL that exists, and that this machine may read, write and delete in"
        )

    def sizes(self) -> dict[str, int]:
        """Return the bytes of every file in this folder and below, by name."""
        found = self._fs.find(self._root, detail=True)
        start = len(self._root) + 1
        sizes = {path[start:]: info["size"] for path, info in found.items()}
        return {name: size for name, size in sizes.items() if name and not _is_partial(name)}

    def read(self, name: str) -> bytes | None:
        """Return a small file's content; None if there is no such file."""
        try:
            return self._fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Make a small file, or replace it."""
        if self._on_disk:
            write_bytes(self._at(name), content)
        else:
            self._fs.pipe_file(self._path(name), content)

    def put(self, local: Path, name: str) -> None:
        """Copy the file ``local`` to ``name``."""
        if not self._on_disk:
            self._fs.put_file(str(local), self._path(name))
            return
        path = self._at(name)
        partial = path.with_name(f".{path.name}.partial")
        shutil.copyfile(local, partial)
        partial.replace(path)

    def get(self, name: str, local: Path) -> None:
        """Copy the file ``name`` to ``local``."""
        from fsspec.callbacks import Callback

        class Beats(Callback):
            def relative_update(self, inc: int = 1) -> None:
                beat()

        self._fs.get_file(self._path(name), str(local), callback=Beats())

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, one after the other; a file that is not there is no error."""
        for name in names:
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                continue
            if self._on_disk:
                self._remove_empty(Path(self._path(name)).parent)

    def remove_leftovers(self) -> None:
        """Remove what killed copies to a disk left; only for a folder with no other writer."""
        for path in Path(self._root).rglob(".*.partial") if self._on_disk else ():
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _at(self, name: str) -> Path:
        """Return a file's path on a disk, and make its folder."""
        path = Path(self._path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _remove_empty(self, folder: Path) -> None:
        if folder != Path(self._root) and not any(folder.iterdir()):
            folder.rmdir()


def _is_partial(name: str) -> bool:
    """Return whether a file is what a killed copy to a disk left."""
    return PurePosixPath(name).name.startswith(".")
