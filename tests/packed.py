"""Inputs for memories over packed documents, and their results: outputs, states, gradients."""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

# Of two rows: the lengths of their documents, and whether the first one began before the row.
DOCUMENTS = ((30, 1, 49), (70, 1, 9))
GOES_ON = (False, True)


def packed_inputs(
    kind: str, heads: int = 2, width: int = 8, slots: int = 6
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return random arguments by name, the padded stretches, and the positions (B, T).

    The stretches: whether each starts a document, their ends, and the ends on the host.
    """
    generator = torch.Generator().manual_seed(0)
    rows, length = len(DOCUMENTS), sum(DOCUMENTS[0])
    q, k, v = torch.randn(3, rows, length, heads, width, generator=generator)
    if kind == "slot":
        gates = torch.rand(rows, length, heads, slots, generator=generator)
        state = torch.randn(rows, heads, slots, 2 * width, generator=generator)
        bank = torch.randn(heads, slots, 2 * width, generator=generator)
        # Where the log decay is zeroed, a slot is not written to.
        inputs = {"q": q * width**-0.5, "k": k, "v": v, "log_decay": -gates * (gates > 0.3)}
        inputs |= {"initial": state, "bank": bank}
    else:
        # Values twice as wide as keys, and strengths up to 2.
        v = torch.cat([v, torch.randn(v.shape, generator=generator)], dim=-1)
        each = {"delta": ((), ()), "kda": ((width,), ()), "gdn2": ((width,), (3 * width,))}
        decays, strengths = (
            torch.rand(rows, length, heads, *size, generator=generator) for size in each[kind]
        )
        state = torch.randn(rows, heads, width, 2 * width, generator=generator)
        inputs = {"q": q, "k": F.normalize(k, dim=-1), "v": v, "log_decay": -decays}
        inputs |= {"beta": 2 * strengths, "initial": state}
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in DOCUMENTS])
    for row, goes_on in enumerate(GOES_ON):
        if goes_on:
            positions[row, : DOCUMENTS[row][0]] += 5
    lengths = [n for row in DOCUMENTS for n in row] + [0] * 3
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    firsts = ends[:-1].long().clamp(max=rows * length - 1)
    return inputs, ((positions == 0).flatten()[firsts], ends.clone(), ends), positions


def results(
    function: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return ``y``, ``final`` and, by input name, the gradients of their sums of squares."""
    leaves = [x.clone().requires_grad_() for x in inputs.values()]
    y, final = function(*leaves)
    grads = torch.autograd.grad(y.square().sum() + final.square().sum(), leaves)
    return {"y": y, "final": final, **dict(zip(inputs, grads, strict=True))}
