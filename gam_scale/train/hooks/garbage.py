"""Python's garbage collector, which runs when a step is done instead of anywhere within one.

It stops this rank's host for as long as it takes, at a moment of its own on each rank, and all
others wait for the slowest in their next collective.
"""

import gc

from gam_scale.train.loop import Hook, Loop

EVERY = 100
"""Steps between collections, the same ones on all ranks. PyTorch frees tensors by counting their
references; what is left for the collector are cycles of small objects."""


class Garbage(Hook):
    """The collector is off while the loop runs; then it is as it was before."""

    def __init__(self, every: int = EVERY) -> None:
        self.every = every

    def start(self, loop: Loop) -> None:
        """Turn it off."""
        self._was_on = gc.isenabled()
        gc.collect()
        gc.disable()
        gc.freeze()  # what the start made stays: not to be gone through each time

    def over(self, loop: Loop) -> None:
        """Collect, if it is time to."""
        if loop.state.step % self.every == 0:
            gc.collect()

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Turn it on again."""
        gc.unfreeze()
        if self._was_on:
            gc.enable()
