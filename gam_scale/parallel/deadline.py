"""A deadline for calls that nothing can interrupt, such as those into a GPU's driver."""

import faulthandler
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End this process with status 1, and print where all its threads are, after ``seconds``.

    A thread without the interpreter's lock does this. There is one deadline at a time.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
