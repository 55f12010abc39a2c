"""A record of what a full GPU's memory held, as a file for pytorch.org/memory_viz."""

import logging
from pathlib import Path

import torch

from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")


class OutOfMemory(Hook):
    """Writes ``memory-rankN.pickle`` if a GPU runs out of memory; on a CPU it does nothing.

    In a run that profiles steps it also records which line of code asks for each piece of memory,
    which takes some microseconds each time.

    Args:
        folder: where the file goes; created if needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self, loop: Loop) -> None:
        """Begin to record the lines of code if the run profiles steps."""
        if self._traces(loop):
            torch.cuda.memory._record_memory_history("state", context="state", stacks="python")

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Write the file if memory ran out: the error's frames still hold most of the tensors."""
        if isinstance(error, torch.OutOfMemoryError) and loop.world.device.type == "cuda":
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"memory-rank{loop.world.rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(file))
            logger.error("out of memory on %s: %s shows what was in it", loop.world.device, file)
        if self._traces(loop):
            torch.cuda.memory._record_memory_history(None)

    def _traces(self, loop: Loop) -> bool:
        return loop.world.device.type == "cuda" and bool(loop.config.train.profile)
