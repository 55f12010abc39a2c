"""Runs Python's garbage collector between steps instead of anywhere within one.

A collection stops a rank's host. Left to Python, it comes at another moment on each rank, and every
time all the other ranks wait for that one in their next collective.
"""

import gc

from gam_scale.train.loop import Hook, Loop

EVERY = 100
"""Steps between collections, which come at the same steps on all ranks. PyTorch frees tensors by
counting references; only cycles of small objects are left for the collector."""


class Garbage(Hook):
    """Turns the collector off while the loop runs, and collects after every ``every`` steps."""

    def __init__(self, every: int = EVERY) -> None:
        self.every = every

    def start(self, loop: Loop) -> None:
        """Turn the collector off."""
        self._was_on = gc.isenabled()
        gc.collect()
        gc.disable()
        gc.freeze()  # objects made by the start stay, so no collection need go through them

    def over(self, loop: Loop) -> None:
        """Collect if a collection is due."""
        if loop.state.step % self.every == 0:
            gc.collect()

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Turn the collector on again if it was on before."""
        gc.unfreeze()
        if self._was_on:
            gc.enable()
