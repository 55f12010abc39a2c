"""What a GPU's memory held when it did not suffice: a file for pytorch.org/memory_viz."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gam_scale.parallel.world import World

logger = logging.getLogger("gam_scale")


@contextmanager
def snapshot_when_out_of_memory(folder: Path, world: World, *, trace: bool) -> Iterator[None]:
    """Write ``memory-rankN.pickle`` into ``folder`` if what runs inside has too little memory.

    Args:
        folder: made if it is needed.
        world: this rank; on a CPU nothing is done.
        trace: note for all memory which line asks for it, at some microseconds each time.
    """
    if world.device.type != "cuda":
        yield
        return
    memory = torch.cuda.memory
    if trace:
        memory._record_memory_history("state", context="state", stacks="python")
    try:
        yield
    except torch.OutOfMemoryError:
        # The error's frames still hold most of what was there.
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"memory-rank{world.rank}.pickle"
        memory._dump_snapshot(str(file))
        logger.error("out of memory on %s: %s shows what was in it", world.device, file)
        raise
    finally:
        if trace:
            memory._record_memory_history(None)
