"""Python's garbage collector, which runs when a step is done instead of anywhere within one.

It stops this rank's host for as long as it takes, at a moment of its own on each rank, and all
others wait for the slowest in their next collective.
"""

import gc
from types import TracebackType
from typing import Self

EVERY = 100
"""Steps between collections, the same ones on all ranks. PyTorch frees tensors by counting their
references; what is left for the collector are cycles of small objects."""


class Garbage:
    """Off inside, as a context manager; then as it was before."""

    def __enter__(self) -> Self:
        self._was_on = gc.isenabled()
        gc.collect()
        gc.disable()
        gc.freeze()  # what the start made stays: not to be gone through each time
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.unfreeze()
        if self._was_on:
            gc.enable()

    def at(self, step: int) -> None:
        """Collect, if it is time to after ``step``."""
        if step % EVERY == 0:
            gc.collect()
