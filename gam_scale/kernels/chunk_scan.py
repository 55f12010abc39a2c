"""Triton kernels of ``state_i = decay_i state_{i-1} + write_i``: one launch for all steps.

One program holds the state of one row, or a part of it, and walks through all steps. Backward is
the same walk from the other end, with each matrix transposed; ``gam_scale.model.memory.recurrence``
has the formulas.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256  # numbers of a state that one program holds where decays are factors


def forward(decay: Tensor, write: Tensor, initial: Tensor, precision: str) -> Tensor:
    """Return the states after each of N steps, the initial ones first, (R, N + 1, M, D).

    All arguments but ``precision`` are contiguous float32.

    Args:
        decay: (R, N, M, 1), a factor for each row of a state, or (R, N, M, M), a matrix, M at most
            256.
        write: (R, N, M, D).
        initial: (R, M, D).
        precision: of products with matrices, "ieee" or "tf32".
    """
    rows, steps, *state = write.shape
    states = write.new_empty((rows, steps + 1, *state))
    states[:, 0].copy_(initial)
    _launch(decay, write, states, precision, reverse=False)
    return states


def backward(grad_states: Tensor, decay: Tensor, precision: str) -> Tensor:
    """Return gradients of the initial state and of each write, (R, N + 1, M, D), given those of
    all states."""
    grads = torch.empty_like(grad_states)
    grads[:, -1].copy_(grad_states[:, -1])
    _launch(decay, grad_states, grads, precision, reverse=True)
    return grads


def _launch(decay: Tensor, added: Tensor, states: Tensor, precision: str, *, reverse: bool) -> None:
    rows, steps, size, width = *decay.shape[:3], states.shape[-1]
    if decay.shape[-1] == 1:
        block = min(_BLOCK, triton.next_power_of_2(size * width))
        grid = (rows, triton.cdiv(size * width, block))
        _factors[grid](
            decay, added, states, steps, size, width, added.shape[1], BLOCK=block, REVERSE=reverse
        )
        return
    tile = tile_of(size, width)
    _matrices[rows, triton.cdiv(width, tile["COLUMNS"])](
        decay,
        added,
        states,
        steps,
        size,
        width,
        added.shape[1],
        PRECISION=precision,
        REVERSE=reverse,
        **tile,
    )


def tile_of(size: int, width: int) -> dict[str, int]:
    """Return the launch options of :func:`_matrices`, whose program holds COLUMNS of a state and
    reads DEPTH columns of a matrix at a time."""
    rows = max(16, triton.next_power_of_2(size))
    return {
        "SIZE": rows,
        "COLUMNS": min(32, max(16, triton.next_power_of_2(width))),
        "DEPTH": min(32 if rows < 256 else 16, rows),
        "num_warps": 8 if rows >= 128 else 4,
        "num_stages": 2,
    }


@triton.jit
def _factors(
    decay,  # (R, N, size)
    added,  # (R, n, size * width), n = N, or N + 1 in reverse
    states,  # (R, N + 1, size * width): the first, or in reverse the last, is there
    steps,
    size,
    width,
    added_steps,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):
    row, numbers = tl.program_id(0).to(tl.int64), size * width
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    decay += row * steps * size + at // width
    added += row * added_steps * numbers + at
    states += row * (steps + 1) * numbers + at
    state = tl.load(states + (steps * numbers if REVERSE else 0), inside, 0.0)
    for n in range(steps):
        i = steps - 1 - n if REVERSE else n
        a = tl.load(decay + i * size, inside, 0.0)
        state = a * state + tl.load(added + i * numbers, inside, 0.0)
        tl.store(states + (i if REVERSE else i + 1) * numbers, state, inside)


@triton.jit
def _matrices(
    decay,  # (R, N, size, size)
    added,  # (R, n, size, width), n = N, or N + 1 in reverse
    states,  # (R, N + 1, size, width): the first, or in reverse the last, is there
    steps,
    size,
    width,
    added_steps,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Walk the steps, reading the last state back DEPTH rows at a time; a cache has it still."""
    row, numbers = tl.program_id(0).to(tl.int64), size * width
    m, k = tl.arange(0, SIZE), tl.arange(0, DEPTH)
    d = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (m < size)[:, None] & (d < width)[None]
    at = m[:, None] * width + d[None]
    decay += row * steps * size * size
    added += row * added_steps * numbers
    states += row * (steps + 1) * numbers
    across, down = (1, size) if REVERSE else (size, 1)  # of a matrix, transposed in reverse
    for n in range(steps):
        i = steps - 1 - n if REVERSE else n
        state = tl.load(added + i * numbers + at, inside, 0.0)
        before = states + (i + 1 if REVERSE else i) * numbers
        for first in range(0, size, DEPTH):
            rows = first + k
            matrix = tl.load(
                decay + i * size * size + m[:, None] * across + rows[None] * down,
                (m < size)[:, None] & (rows < size)[None],
                0.0,
            )
            part = tl.load(
                before + rows[:, None] * width + d[None],
                (rows < size)[:, None] & (d < width)[None],
                0.0,
            )
            state = tl.dot(matrix, part, state, input_precision=PRECISION)
        tl.store(states + (i if REVERSE else i + 1) * numbers + at, state, inside)
        tl.debug_barrier()  # other threads of the program read this state next
