"""What a GPU's memory held when it did not suffice: a file for pytorch.org/memory_viz."""

import logging
from pathlib import Path

import torch

from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")


class OutOfMemory(Hook):
    """Writes ``memory-rankN.pickle`` if a run has too little memory; on a CPU it does nothing.

    Where steps are profiled it notes for all memory which line asks for it, at some microseconds
    each time.

    Args:
        folder: made if it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, loop: Loop) -> None:
        """Note from now on, if at all."""
        if self._traces(loop):
            torch.cuda.memory._record_memory_history("state", context="state", stacks="python")

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Write, if that is the error: its frames still hold most of what was there."""
        if isinstance(error, torch.OutOfMemoryError) and loop.world.device.type == "cuda":
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"memory-rank{loop.world.rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(file))
            logger.error("out of memory on %s: %s shows what was in it", loop.world.device, file)
        if self._traces(loop):
            torch.cuda.memory._record_memory_history(None)

    def _traces(self, loop: Loop) -> bool:
        return loop.world.device.type == "cuda" and bool(loop.config.train.profile)
