"""Memory of the tensors that are alive now."""

import gc

import torch
from torch.distributed.tensor import DTensor


def live_storages() -> dict[int, int]:
    """Return address and bytes of every tensor storage that Python can reach, each once."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter, DTensor):  # not the compiler's fakes
            local = thing.to_local() if isinstance(thing, DTensor) else thing
            if local.device.type != "meta" and local.layout == torch.strided:
                storage = local.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found
