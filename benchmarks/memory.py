"""What tensors take: those alive now, and the most that a function allocates."""

import gc
from collections.abc import Callable

import torch
from torch.distributed.tensor import DTensor


def live_storages() -> dict[int, int]:
    """Address and bytes of every tensor storage that Python can reach, each once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter, DTensor):  # not the compiler's fakes
            local = thing.to_local() if isinstance(thing, DTensor) else thing
            if local.device.type != "meta":
                storage = local.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def allocated_at_most(function: Callable[[], None]) -> int:
    """Most bytes that the CPU allocator has given out at once since the call began."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak
