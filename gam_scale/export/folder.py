"""Output folders that are new, and whole or absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.files import partial_folder, put_in_place


def check_is_new(out: Path) -> None:
    """Check that an output folder does not exist or is empty.

    Raises:
        UserError: it is a file or holds something.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty; expected a new or empty folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes ``out`` in one rename if the block raises no error.

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
