"""Sequences cut over ranks: which tokens of a batch each rank holds, and what ranks exchange."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from gam_scale.data.packing import Batch
from gam_scale.kernels.operator import operator
from gam_scale.parallel.world import World


def part(batch: Batch, world: World) -> Batch:
    """Return this rank's part of ``batch``: T / context consecutive tokens of each sequence."""
    rank, size = world.place.context, world.axes.context
    if size == 1:
        return batch
    length = batch.tokens.shape[1] // size
    here = slice(rank * length, (rank + 1) * length)
    tokens, targets = (x[:, here].contiguous() for x in (batch.tokens, batch.targets))
    layout = batch.layout.part(rank, size)
    return batch._replace(tokens=tokens, targets=targets, layout=layout)


class SequenceContext:
    """Exchanges tensors along the mesh's context axis; a :class:`gam_scale.model.context.Context`.

    Attributes:
        bytes_sent: bytes that this rank has sent so far, forward and backward, one copy counted
            for each receiving rank.
    """

    def __init__(self, world: World) -> None:
        """Called by all ranks of the job together."""
        self.rank, self.size = world.place.context, world.axes.context
        self.group = world.mesh.get_group("context")
        self.bytes_sent = 0
        self._number = len(_CONTEXTS)
        _CONTEXTS.append(self)

    def gather(self, x: Tensor) -> Tensor:
        """Return every rank's ``x``, stacked in rank order: (size, ...)."""
        return _gather(x.contiguous(), self._number, self.size)

    def shift(self, x: Tensor) -> Tensor:
        """Return the previous rank's ``x``; zeros on the first rank."""
        return _shift(x.contiguous(), self._number, 1)

    def _exchange(self, x: Tensor, step: int) -> Tensor:
        """Send ``x`` to rank + ``step`` (1 or -1); return what rank - ``step`` sent, or zeros."""
        received = torch.zeros_like(x)
        to, source = self.rank + step, self.rank - step
        calls = []
        if 0 <= to < self.size:
            calls.append(dist.P2POp(dist.isend, x, group=self.group, group_peer=to))
            self.bytes_sent += x.nbytes
        if 0 <= source < self.size:
            calls.append(dist.P2POp(dist.irecv, received, group=self.group, group_peer=source))
        for work in dist.batch_isend_irecv(calls):
            work.wait()
        return received


def _collective(name: str, former: str) -> Callable[..., object]:
    """Return torch.distributed's function ``name``, which torch 2.11 calls ``former``."""
    return getattr(dist, name, None) or getattr(dist, former)


_CONTEXTS: list[SequenceContext] = []
"""All contexts, which operators refer to by index: their arguments are tensors and numbers."""


# Custom operators, so that a compiled block stays one graph, and recomputation can keep their
# results instead of sending them again.
@operator("gam_scale::context_gather", keep="dear")
def _gather(x: Tensor, number: int, size: int) -> Tensor:
    context = _CONTEXTS[number]
    out = x.new_empty((size, *x.shape))
    _collective("all_gather_single", "all_gather_into_tensor")(
        out.view(-1), x.view(-1), group=context.group
    )
    context.bytes_sent += x.nbytes * (size - 1)
    return out


@operator("gam_scale::context_scatter")
def _scatter(grads: Tensor, number: int) -> Tensor:
    """Sum all ranks' gradients of this rank's ``x``: the backward pass of :func:`_gather`."""
    context = _CONTEXTS[number]
    out = torch.empty_like(grads[0])
    _collective("reduce_scatter_single", "reduce_scatter_tensor")(
        out.view(-1), grads.view(-1), group=context.group
    )
    context.bytes_sent += out.nbytes * (context.size - 1)
    return out


@operator("gam_scale::context_shift", keep="dear")
def _shift(x: Tensor, number: int, step: int) -> Tensor:
    return _CONTEXTS[number]._exchange(x, step)


@_gather.register_fake
def _(x: Tensor, number: int, size: int) -> Tensor:
    return x.new_empty((size, *x.shape))


@_scatter.register_fake
def _(grads: Tensor, number: int) -> Tensor:
    return torch.empty_like(grads[0])


@_shift.register_fake
def _(x: Tensor, number: int, step: int) -> Tensor:
    return torch.empty_like(x)


def _save(ctx, inputs, output) -> None:
    ctx.arguments = inputs[1:]


def _gather_gradient(ctx, grads: Tensor) -> tuple[Tensor, None, None]:
    return _scatter(grads.contiguous(), ctx.arguments[0]), None, None


def _shift_gradient(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    number, step = ctx.arguments
    return _shift(grad.contiguous(), number, -step), None, None


_gather.register_autograd(_gather_gradient, setup_context=_save)
_shift.register_autograd(_shift_gradient, setup_context=_save)
