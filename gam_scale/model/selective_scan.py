"""Mamba's selective scan (arXiv 2312.00752) in portable PyTorch, with hand-derived gradients."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.kernels.operator import operator
from gam_scale.model.memory.recurrence import linear_scan
from gam_scale.model.selective_steps import STEPS, advance, compiled, pieces, retreat


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    fused: bool = False,
    group: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over time, channel by channel:

        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        y_t = C_t h_t + D x_t

    A document's first token starts from a zero state, whatever came before it, ``initial_state``
    included. The state is kept in float32 (float64 for float64 inputs) whatever the input's dtype.

    Memory: the state is stored every ~sqrt(T) tokens, and ``backward`` recomputes the states of one
    such chunk at a time; never (batch, T, E, N) at once.

    Args:
        x: (batch, T, E) inputs, T >= 1.
        dt: (batch, T, E) step sizes, positive.
        A: (E, N) decay rates, negative.
        B: (batch, T, N) what each token writes with.
        C: (batch, T, N) what each token reads with.
        D: (E,) weight of the skip connection.
        starts: (batch, T) bool, the first tokens of documents; None: nothing resets.
        initial_state: (batch, E, N) state before the first token; None: zero.
        fused: whether a compiler is available, which makes one loop of several tokens.
        group: consecutive tokens in a group. Groups run side by side, twice: first for what each
            does to a state, then from its true starting state. None: all T on a CPU, near sqrt(T)
            elsewhere, where each token of a group is a few kernel launches.

    Returns:
        y (batch, T, E) in the dtype of ``x``, and the final state (batch, E, N).
    """
    out_dtype = x.dtype
    dtype = torch.float64 if out_dtype == torch.float64 else torch.float32
    h = x.new_zeros((x.shape[0], *A.shape)) if initial_state is None else initial_state
    x, dt, A, B, C, D, h = (v.to(dtype) for v in (x, dt, A, B, C, D, h))
    # Channels run innermost, (..., N, E): every elementwise step then walks long contiguous rows
    # and every sum over N is a small matrix product. Measured at batch 8, E 1536, N 16 on two
    # cores, against (..., E, N): the product with C takes 23 us, not 155.
    if group is None:
        group = x.shape[1] if x.device.type == "cpu" else max(64, chunk_size(4 * x.shape[1]))
    scan = _scan_groups if group < x.shape[1] else _scan_rows
    y, h = scan(x, dt, A.mT.contiguous(), B, C, h.mT, starts, fused, group)
    return (y + D * x).to(out_dtype), h.mT


def _scan_rows(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    reset: Tensor | None,
    fused: bool,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Scan one token after another; the arguments are laid out as the operator's."""
    x, dt, B, C, initial = (v.contiguous() for v in (x, dt, B, C, initial))
    return _scan(x, dt, A, B, C, initial, reset, chunk_size(group), fused)[:2]


def _scan_groups(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    reset: Tensor | None,
    fused: bool,
    group: int,
) -> tuple[Tensor, Tensor]:
    """Scan groups of tokens as rows of their own: first for folds (see memory/recurrence), then y.

    Tokens that pad the last group have steps of 0: they neither decay a state nor write to it.
    """
    rows, length, _ = x.shape
    missing = -length % group

    def cut(v: Tensor) -> Tensor:
        return F.pad(v, (0, 0, 0, missing)).unflatten(1, (-1, group)).flatten(0, 1)

    x, dt, B, C = map(cut, (x, dt, B, C))
    decay = torch.exp(dt.sum(1).unsqueeze(1) * A)
    if reset is not None:  # after exp: an infinite step would give A a gradient of inf * 0
        reset = cut(reset.unsqueeze(-1)).squeeze(-1)
        decay = decay.masked_fill(reset.any(1).view(-1, 1, 1), 0.0)
    nothing = torch.zeros_like(decay)
    write = _scan_rows(x, dt, A, B, C, nothing, reset, fused, group)[1]
    # Each number of a state is a row of it: (rows, 1, groups, N E, 1).
    decays, writes = (
        v.unflatten(0, (rows, 1, -1)).flatten(-2).unsqueeze(-1) for v in (decay, write)
    )
    states = linear_scan(decays, writes, initial.reshape(rows, 1, -1, 1))[:, 0, ..., 0]
    starts = states[:, :-1].reshape(decay.shape)
    y = _scan_rows(x, dt, A, B, C, starts, reset, fused, group)[0]
    return y.unflatten(0, (rows, -1)).flatten(1, 2)[:, :length], states[:, -1].view_as(initial)


def chunk_size(length: int) -> int:
    """Return the tokens between stored states: a power of two near sqrt(length)."""
    chunk = STEPS
    while 4 * chunk * chunk < length:  # comparisons only, so that a compiled caller may vary T
        chunk *= 2
    return chunk


class _Tokens(NamedTuple):
    """The recurrence's inputs for T tokens, laid out as the operator's."""

    decay_dt: Tensor  # (b, T, E) step sizes that decay the state
    A: Tensor  # (N, E)
    write: Tensor  # (b, T, E), dt x
    B: Tensor  # (b, T, N)
    C: Tensor  # (b, T, N)

    def at(self, where: slice) -> "_Tokens":
        """Return the inputs for some of the tokens."""
        decay_dt, A, *others = self
        return _Tokens(decay_dt[:, where], A, *(x[:, where] for x in others))

    def step(self, t: int, h: Tensor, *, out: Tensor, decay: Tensor) -> None:
        """Set decay = exp(dt A), out = decay h + write B for token t of each row; out may be h."""
        torch.mul(self.decay_dt[:, t].unsqueeze(1), self.A, out=decay).exp_()
        write, B = self.write[:, t], self.B[:, t]
        torch.mul(h, decay, out=out).addcmul_(write.unsqueeze(1), B.unsqueeze(-1))


# Custom operators rather than an autograd.Function, so that torch.compile puts a scan into its
# caller's graph as one node: no graph break, and no loop over time to unroll.
@operator("gam_scale::selective_scan", keep="dear")
def _scan(
    x: Tensor,  # (b, T, E), like all below contiguous and of the state's dtype
    dt: Tensor,  # (b, T, E)
    A: Tensor,  # (N, E)
    B: Tensor,  # (b, T, N)
    C: Tensor,  # (b, T, N)
    initial: Tensor,  # (b, N, E)
    reset: Tensor | None,  # (b, T) bool
    chunk: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y without D (b, T, E), the final state (b, N, E), the state before each chunk."""
    scan = _in_pieces if fused else _by_token
    return scan(_Tokens(_decay_dt(dt, reset), A, dt * x, B, C), initial, chunk)


def _by_token(tokens: _Tokens, initial: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    y, starts = _results(tokens, initial, chunk)
    h, decay = initial.clone(), torch.empty_like(initial)
    for t in range(y.shape[1]):
        if t % chunk == 0:
            starts[t // chunk].copy_(h)
        tokens.step(t, h, out=h, decay=decay)
        torch.bmm(tokens.C[:, t].unsqueeze(1), h, out=y[:, t : t + 1])
    return y, h, starts


def _in_pieces(tokens: _Tokens, initial: Tensor, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
    y, starts = _results(tokens, initial, chunk)
    h, run = initial.clone(), compiled(advance)
    for at in pieces(y.shape[1]):
        if at.start % chunk == 0:
            starts[at.start // chunk].copy_(h)
        y[:, at], h = run(h, *tokens.at(at))
    return y, h, starts


def _results(tokens: _Tokens, initial: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Allocate y, and the states before each chunk."""
    y = torch.empty_like(tokens.write)
    return y, y.new_empty((-(-y.shape[1] // chunk), *initial.shape))


@operator("gam_scale::selective_scan_backward")
def _scan_backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    reset: Tensor | None,
    starts: Tensor,
    chunk: int,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C and the initial state; see :func:`retreat`."""
    backward = _back_in_pieces if fused else _back_by_token
    tokens = _Tokens(_decay_dt(dt, reset), A, dt * x, B, C)
    g, grad_A, grad_write, grad_dt, grad_B, grad_C = backward(
        grad_y, grad_final, dt, tokens, starts, chunk
    )
    grad_dt.addcmul_(grad_write, x)
    return grad_write.mul_(dt), grad_dt, grad_A.sum(0), grad_B, grad_C, g


def _back_by_token(
    grad_y: Tensor, grad_final: Tensor, dt: Tensor, tokens: _Tokens, starts: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    _, A, write, B, C = tokens
    grad_write, grad_dt, grad_B, grad_C = map(torch.empty_like, (write, dt, B, C))
    g, grad_A = grad_final.clone(), torch.zeros_like(grad_final)  # grad_A: still per row, (b, N, E)
    states = g.new_empty((min(chunk, dt.shape[1]) + 1, *g.shape))
    decays, exponent = torch.empty_like(states[1:]), torch.empty_like(g)
    ones = g.new_ones((g.shape[0], 1, A.shape[0]))
    for first in reversed(range(0, dt.shape[1], chunk)):
        here = range(first, min(first + chunk, dt.shape[1]))
        states[0].copy_(starts[first // chunk])
        for i, t in enumerate(here):
            tokens.step(t, states[i], out=states[i + 1], decay=decays[i])
        for t in reversed(here):
            i, at = t - first, slice(t, t + 1)
            g.addcmul_(grad_y[:, at], C[:, at].mT)
            torch.bmm(grad_y[:, at], states[i + 1].mT, out=grad_C[:, at])
            torch.bmm(write[:, at], g.mT, out=grad_B[:, at])
            torch.bmm(B[:, at], g, out=grad_write[:, at])
            g.mul_(decays[i])
            torch.mul(g, states[i], out=exponent)
            grad_A.addcmul_(exponent, dt[:, at])
            torch.bmm(ones, exponent.mul_(A), out=grad_dt[:, at])
    return g, grad_A, grad_write, grad_dt, grad_B, grad_C


def _back_in_pieces(
    grad_y: Tensor, grad_final: Tensor, dt: Tensor, tokens: _Tokens, starts: Tensor, chunk: int
) -> tuple[Tensor, ...]:
    """Recompute the states before the pieces of each chunk, then walk back through them."""
    results = tuple(map(torch.empty_like, (tokens.write, dt, tokens.B, tokens.C)))
    g, grad_A = grad_final, torch.zeros_like(grad_final)
    forward, backward = compiled(advance), compiled(retreat)
    whole, per_chunk = pieces(dt.shape[1]), chunk // STEPS
    for n in reversed(range(starts.shape[0])):
        own, before = whole[n * per_chunk : (n + 1) * per_chunk], [starts[n]]
        for at in own[:-1]:
            before.append(forward(before[-1], *tokens.at(at))[1])
        for at in reversed(own):
            here = (grad_y[:, at], dt[:, at], *tokens.at(at))
            g, grad_A, *grads = backward(before.pop(), g, grad_A, *here)
            for result, grad in zip(results, grads, strict=True):
                result[:, at] = grad
    return g, grad_A, *results


def _decay_dt(dt: Tensor, reset: Tensor | None) -> Tensor:
    """Return the step sizes that decay the state: infinite at resets, where the decay is 0."""
    return dt if reset is None else dt.masked_fill(reset.unsqueeze(-1), torch.inf)


@_scan.register_fake
def _(x, dt, A, B, C, initial, reset, chunk, fused):
    starts = x.new_empty((-(-x.shape[1] // chunk), *initial.shape))
    return torch.empty_like(x), torch.empty_like(initial), starts


@_scan_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, reset, starts, chunk, fused):
    return tuple(torch.empty_like(v) for v in (x, dt, A, B, C, grad_final))


def _save(ctx, inputs, output) -> None:
    x, dt, A, B, C, _, reset, *ctx.how = inputs
    ctx.save_for_backward(x, dt, A, B, C, reset, output[2])
    ctx.mark_non_differentiable(output[2])


def _gradients(ctx, grad_y, grad_final, _):
    x, dt, A, B, C, reset, starts = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    if grad_final is None:
        grad_final = torch.zeros_like(starts[0])
    grads = _scan_backward(
        grad_y.contiguous(), grad_final.contiguous(), x, dt, A, B, C, reset, starts, *ctx.how
    )
    return *grads, None, None, None


_scan.register_autograd(_gradients, setup_context=_save)
