"""Bytes that ranks send to one another, counted where torch.distributed is called."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor


@contextmanager
def recorded(size: int) -> Iterator[list[int]]:
    """Yield a list to which each call of torch.distributed adds the bytes that it sends.

    A gather or scatter sends one tensor to each of the other ranks, ``size`` - 1 of them.
    """
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
    """Return ``call``, before which ``count`` is called with the same arguments."""

    def both(*args: object, **options: object) -> object:
        count(*args, **options)
        return call(*args, **options)

    return both
