"""What ranks send to one another, counted where torch.distributed is called."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor


@contextmanager
def recorded(size: int) -> Iterator[list[int]]:
    """The bytes that each call of torch.distributed sends, one copy for each of the other ranks."""
    sent: list[int] = []

    def gathers(gathered: Tensor, here: Tensor, **_: object) -> None:
        sent.append(here.nbytes * (size - 1))

    def scatters(here: Tensor, given: Tensor, **_: object) -> None:
        sent.append(here.nbytes * (size - 1))

    def passes(calls: list[dist.P2POp]) -> None:
        sent.extend(call.tensor.nbytes for call in calls if call.op is dist.isend)

    counts: dict[str, Callable[..., None]] = {
        "batch_isend_irecv": passes,
        "all_gather_single": gathers,
        "all_gather_into_tensor": gathers,  # torch 2.11's name of it
        "reduce_scatter_single": scatters,
        "reduce_scatter_tensor": scatters,
    }
    with ExitStack() as patched:
        for name, count in counts.items():
            if (call := getattr(dist, name, None)) is not None:
                patched.enter_context(patch.object(dist, name, _beside(count, call)))
        yield sent


def _beside(count: Callable[..., None], call: Callable[..., object]) -> Callable[..., object]:
    """``call``, of whose arguments ``count`` is told first."""

    def both(*args: object, **options: object) -> object:
        count(*args, **options)
        return call(*args, **options)

    return both
