"""Figures of layers scheduled for a fake H100: gpu_blocks.json, from ``benchmarks.fake_cuda``.

The file has a layer of each kind with default settings, in place of the layers of gam_1b and
ctx16k, and some others, which show how good plans of other layers are.
"""

from functools import cache
from pathlib import Path
from typing import Any

from gam_scale.config import MemoryConfig, ModelConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.strict import read_json

CONFIG = "gam_1b"
"""Config whose layers stand for layers of all sizes."""

TOKENS = 4096
"""Length of its sequences."""


@cache
def rows() -> list[dict[str, Any]]:
    """Return all rows of the file."""
    return read_json(Path(__file__).with_name("gpu_blocks.json"))["rows"]


def row(
    kind: str,
    recompute: str = "selective",
    compiled: bool = True,
    precision: str = "bf16",
    config: str = CONFIG,
) -> dict[str, Any]:
    """Return the figures of one layer in its portable form; bytes are per token."""
    wanted = (config, kind, recompute, compiled, precision, "portable")
    keys = ("config", "kind", "recompute", "compiled", "precision", "implementation")
    (only,) = (each for each in rows() if tuple(each[key] for key in keys) == wanted)
    return only


def model(kind: str) -> ModelConfig:
    """Return a model of the one layer of a kind that was measured in :data:`CONFIG`."""
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


def peak_factor(model: ModelConfig, layer_config: MixerConfig, recompute: str) -> float:
    """Return the ``factor`` of :func:`gam_scale.plan.compiled.compiler` for a layer.

    It is that of the config with more similar heads: a head's matrices are square, what it reads
    and writes is not, so they are a smaller part of what is kept at a width of 64 than at 128.
    """
    config = "ctx16k" if layer_config.head_width(model.shape) < 96 else CONFIG
    kind = layer_config.gpu_block_kind
    here, none = (row(kind, mode, config=config) for mode in (recompute, "none"))
    # The peak is of one segment, of as many as there are graphs; what is kept is of all segments.
    return here["graphs"] * here["peak"] / none["kept"]
