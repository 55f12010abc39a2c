"""Output folders that are new, and whole or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.files import partial_folder, put_in_place


def check_is_new(out: Path) -> None:
    """Refuse an output folder that holds something already.

    Raises:
        UserError: naming it.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; expected a new or empty folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``out`` in one rename when the block ends without an error.

    Raises:
        UserError: ``out`` holds something, or cannot be written.
    """
    out = out.absolute()
    check_is_new(out)
    try:
        partial = partial_folder(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
    try:
        yield partial
        put_in_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
