"""Attention within stretches by torch's CUDA kernels for sequences of different lengths.

The kernels' signatures are the same in torch 2.11 and 2.13.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten

_BOTTOM_RIGHT = 2
"""Mask type of the efficient kernel in which the last query sees the last key."""
_LSE_MULTIPLE = 32
"""The efficient kernel pads log-sum-exps to a multiple of this length."""


class Stretches(NamedTuple):
    """Ends of the stretches, on the device, and the longest lengths, as numbers on the host."""

    ends: Tensor  # (n + 1,) int32 of queries, on the device
    key_ends: Tensor
    longest: int
    longest_keys: int

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        ends: Tensor | None,
        key_ends: Tensor | None,
        ends_host: Tensor | None,
        key_ends_host: Tensor | None,
    ) -> "Stretches":
        """Describe queries (B, H, T, K) and keys (B, H, S, K); ends as in ``attend``'s spans.

        Empty stretches at the end are left out, since kernels reserve memory for each stretch.
        """
        (rows, _, length, _), keys = q.shape, k.shape[2]
        if ends is None:
            row = torch.arange(rows + 1, dtype=torch.int32, device=q.device)
            return cls(row * length, row * keys, length, keys)
        assert key_ends is not None and ends_host is not None and key_ends_host is not None
        n = 1 + max(int((host < host[-1]).sum()) for host in (ends_host, key_ends_host))
        longest, longest_keys = (int(h[:n].diff().max()) for h in (ends_host, key_ends_host))
        return cls(ends[:n], key_ends[:n], longest, longest_keys)


def kernel_for(q: Tensor) -> Literal["flash", "efficient", "blocks"]:
    """Return the fastest kernel that takes heads of this width and dtype."""
    width, is_half = q.shape[-1], q.dtype in (torch.float16, torch.bfloat16)
    is_recent = torch.cuda.get_device_capability(q.device) >= (8, 0)
    if is_half and is_recent and width % 8 == 0 and width <= 256:
        return "flash"
    fits = q.dtype in (torch.float16, torch.float32) and width % 8 == 0
    return "efficient" if fits else "blocks"


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Stretches,
    dropout: float,
    seed: Tensor | None,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result (B, H, T, K), log-sum-exps (H, B T) and, with dropout, the random state."""
    with _seeded(q.device, seed):
        out, lse, rng, _, _ = aten._flash_attention_forward(
            *map(_packed, (q, k, v)), *s, dropout, True, False, **_reach(window)
        )
    rng = rng.view(torch.int64) if dropout else q.new_empty(0, dtype=torch.int64)
    return _unpacked(out, q), lse, rng


def flash_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    rng: Tensor,
    s: Stretches,
    dropout: float,
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    unused = q.new_empty(0)
    rng = rng.view(torch.uint64) if dropout else unused
    of_q, of_k, of_v = aten._flash_attention_backward(
        *map(_packed, (grad, q, k, v, out)), lse, *s, dropout, True, rng, unused, **_reach(window)
    )
    return _unpacked(of_q, q), _unpacked(of_k, k), _unpacked(of_v, v)


def efficient(
    q: Tensor, k: Tensor, v: Tensor, s: Stretches, dropout: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the result (B, H, T, K) and log-sum-exps (H, B T)."""
    with _seeded(q.device, seed):
        out, lse, *_ = aten._efficient_attention_forward(
            *(_packed(x)[None] for x in (q, k, v)), None, *s, dropout, _BOTTOM_RIGHT, True
        )
    stretch, place = _places(q, s)
    return _unpacked(out[0], q), lse[stretch, :, place].t().contiguous()


def efficient_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    s: Stretches,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    stretch, place = _places(q, s)
    padded = -(-s.longest // _LSE_MULTIPLE) * _LSE_MULTIPLE
    whole = lse.new_full((s.ends.shape[0] - 1, lse.shape[0], padded), torch.inf)
    whole[stretch, :, place] = lse.t()
    # Offset, which the kernel reads on the host: 0 in a generator that was just given a seed.
    start = torch.zeros((), dtype=torch.int64)
    of_q, of_k, of_v, _ = aten._efficient_attention_backward(
        *(_packed(x)[None] for x in (grad, q, k, v)),
        None,
        _packed(out)[None],
        *s,
        whole,
        dropout,
        start if seed is None else seed,
        start,
        _BOTTOM_RIGHT,
        False,
    )
    return _unpacked(of_q[0], q), _unpacked(of_k[0], k), _unpacked(of_v[0], v)


def _reach(window: int) -> dict[str, int]:
    """Return how far the flash kernel's queries look back, not counting a query's own token."""
    return {"window_size_left": window - 1, "window_size_right": 0} if window else {}


def _places(q: Tensor, s: Stretches) -> tuple[Tensor, Tensor]:
    """Return each query's stretch and its place in the stretch, (B T,) integers."""
    query = torch.arange(q.shape[0] * q.shape[2], dtype=torch.int32, device=q.device)
    stretch = torch.searchsorted(s.ends[1:], query, right=True)
    return stretch, query - s.ends[stretch]


def _packed(x: Tensor) -> Tensor:
    """Reshape (B, H, T, K) to (B T, H, K)."""
    return x.transpose(1, 2).flatten(0, 1)


def _unpacked(x: Tensor, like: Tensor) -> Tensor:
    return x.contiguous().view(like.transpose(1, 2).shape).transpose(1, 2)


@contextmanager
def _seeded(device: torch.device, seed: Tensor | None) -> Iterator[None]:
    """Set the device's generator to ``seed`` within the context; then restore its state."""
    if seed is None:
        yield
        return
    generator = torch.cuda.default_generators[device.index or 0]
    state = generator.get_state()
    generator.manual_seed(int(seed))
    try:
        yield
    finally:
        generator.set_state(state)
