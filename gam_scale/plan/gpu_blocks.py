"""What a fake H100 was scheduled: gpu_blocks.json, which ``python -m benchmarks.fake_cuda`` makes.

It has a layer of each kind, by default settings, in the place of the layers of gam_1b and ctx16k,
and a few others, which show how good a plan of other layers is.
"""

from functools import cache
from pathlib import Path
from typing import Any

from gam_scale.config import MemoryConfig, ModelConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.strict import read_json

CONFIG = "gam_1b"
"""Whose layers stand for those of all sizes."""

TOKENS = 4096
"""Of its sequences."""


@cache
def rows() -> list[dict[str, Any]]:
    """All that the file has."""
    return read_json(Path(__file__).with_name("gpu_blocks.json"))["rows"]


def row(
    kind: str,
    recompute: str = "selective",
    compiled: bool = True,
    precision: str = "bf16",
    config: str = CONFIG,
) -> dict[str, Any]:
    """Figures of one layer in its portable form; bytes are per token."""
    wanted = (config, kind, recompute, compiled, precision, "portable")
    keys = ("config", "kind", "recompute", "compiled", "precision", "implementation")
    (only,) = (each for each in rows() if tuple(each[key] for key in keys) == wanted)
    return only


def model(kind: str) -> ModelConfig:
    """The layer of :data:`CONFIG` that was measured."""
    return ModelConfig(
        layers=[kind],
        n_layers=1,
        d_model=1536,
        vocab_size=1,
        max_seq_len=TOKENS,
        position="none",
        dropout=0.0,
        memory=MemoryConfig(n_heads=12),
    )


def peak_factor(model: ModelConfig, one: MixerConfig, recompute: str) -> float:
    """See :func:`gam_scale.plan.compiled.compiler`; of the config whose heads are most alike.

    A head's matrices are square, what it reads and writes is not: at a width of 64 they are a
    smaller part of what is kept than at 128.
    """
    config = "ctx16k" if one.head_width(model.shape) < 96 else CONFIG
    here, none = (row(one.measured_as, mode, config=config) for mode in (recompute, "none"))
    # Of one segment, of as many as there are graphs; what is kept is of all.
    return here["graphs"] * here["peak"] / none["kept"]
