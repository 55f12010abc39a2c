"""What layers move through a GPU's memory and launch, from what a fake H100 was scheduled.

gpu_blocks.json has the layers of gam_1b and ctx16k: `python -m benchmarks.fake_cuda` makes it.
Other sizes follow from gam_1b's: bytes per token grow with the width, whatever the heads are
(within 6% for widths of 768 to 2,048 and heads of 64 and 128), and for slot memories with their
slots.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gam_scale.config import ModelConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.strict import read_json

_CONFIG, _WIDTH, _HEADS, _SLOTS = "gam_1b", 1536, 12, 64
_PER_SLOT = 1.4
"""Bytes that a slot of a head costs, over those of a channel of the width."""

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
_LOOPS = "fused loops"


@dataclass(frozen=True)
class Traffic:
    """Of one layer in one micro-batch, forward and backward, recomputation included."""

    products: float  # bytes per token that matrix products read and write
    others: float  # bytes per token of all else
    launches: int  # for each segment of a sequence


def traffic(
    model: ModelConfig, one: MixerConfig, recompute: str, *, compiled: bool, precision: str
) -> Traffic:
    """Bytes and launches of a layer in the portable form, on a GPU."""
    kind = one.measured_as
    row = _row(kind, recompute if compiled else "selective", compiled, "bf16")
    fp32 = _row(kind, "selective", True, "fp32")["bytes"] / _row(kind)["bytes"]
    size = _size(model.d_model, one.state_rows)
    scale = (
        size
        / _size(_WIDTH, _HEADS * _SLOTS * (one.state_rows > 0))
        * (fp32 if precision == "fp32" else 1.0)
    )
    products = sum(row["by_kernel"].get(name, (0, 0))[1] for name in _PRODUCTS)
    return Traffic(products * scale, (row["bytes"] - products) * scale, row["kernels"])


def peak_factor(model: ModelConfig, one: MixerConfig, recompute: str) -> float:
    """See :func:`gam_scale.plan.compiled.compiler`; of the config whose heads are most alike.

    A head's matrices are square, what it reads and writes is not: at a width of 64 they are a
    smaller part of what is kept than at 128.
    """
    config = "ctx16k" if one.head_width(model.shape) < 96 else _CONFIG
    here, none = (_row(one.measured_as, mode, config=config) for mode in (recompute, "none"))
    # Of one segment, of as many as there are graphs; what is kept is of all.
    return here["graphs"] * here["peak"] / none["kept"]


def _size(width: int, rows: int) -> float:
    return width + _PER_SLOT * rows


def _row(
    kind: str,
    recompute: str = "selective",
    compiled: bool = True,
    precision: str = "bf16",
    config: str = _CONFIG,
) -> dict[str, Any]:
    wanted = (config, kind, recompute, compiled, precision, "portable")
    keys = ("config", "kind", "recompute", "compiled", "precision", "implementation")
    (row,) = (row for row in rows() if tuple(row[key] for key in keys) == wanted)
    return row


@cache
def rows() -> list[dict[str, Any]]:
    """All that the file has."""
    return read_json(Path(__file__).with_name("gpu_blocks.json"))["rows"]
