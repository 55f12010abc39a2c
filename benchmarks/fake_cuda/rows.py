"""The rows of the table: which blocks are traced, and what is noted of each."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from benchmarks.fake_cuda.block import Trace, by_name, trace
from gam_scale.config import RunConfig, load_config
from gam_scale.hardware.data_sheets import Precision
from gam_scale.model.parts import MIXERS, MixerConfig, implementations
from gam_scale.parallel.blocks import Recompute

KINDS = tuple(implementations())
CONFIGS = ("gam_1b", "ctx16k")
HEADS = {"gam_1b": 12, "ctx16k": 16}
"""Of memories: 128 channels each, and 64."""
LAYERS: dict[str, dict[str, Any]] = {
    "gam_delta": {"kind": "gam_delta", "n_heads": 12},
    "gdn": {"kind": "gdn", "n_heads": 12},
    "kda": {"kind": "kda", "n_heads": 12},
    "gdn2": {"kind": "gdn2", "n_heads": 12},
    "grouped_queries": {"kind": "attention", "n_heads": 12, "n_kv_heads": 3, "qk_norm": True},
    "swiglu_rmsnorm": {"kind": "static", "ffn": "swiglu", "norm": "rmsnorm"},
}
"""By name: layers with other settings and parts, of which a plan counts what it was not shown."""
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
KERNELS = {kind: MIXERS[kind].kernel for kind in KINDS if MIXERS[kind].kernel}
"""Implementations beside the portable one. Their packages need not be there to be scheduled."""


@dataclass(frozen=True)
class Row:
    """One block, by default settings, in one micro-batch of a shipped config.

    In the place of the config's own layers, which any of them may become.
    """

    config: str  # of configs/, all of whose settings hold but heads of memories and the following
    kind: str  # or one of LAYERS
    recompute: Recompute
    compiled: bool = True
    precision: Precision = "bf16"
    implementation: str = "portable"

    def settings(self) -> RunConfig:
        """The whole config."""
        config = load_config(f"configs/{self.config}.json")
        train = replace(config.train, recompute=self.recompute, precision=self.precision)
        memory = replace(config.model.memory, n_heads=HEADS[self.config])
        return replace(config, model=replace(config.model, memory=memory), train=train)


def rows(kinds: Sequence[str], configs: Sequence[str], modes: Sequence[Recompute]) -> list[Row]:
    """Those of the table: every combination, compiled; others of the usual way to recompute.

    Those are kernels, of each config, and uncompiled and fp32 layers of the first, and there too
    the :data:`LAYERS`.
    """
    chosen = [kind for kind in kinds if kind not in LAYERS]
    found = [Row(*parts) for parts in product(configs, chosen, modes)]
    for row in [row for row in found if row.recompute == "selective" and row.kind in KERNELS]:
        found.append(replace(row, implementation=KERNELS[row.kind]))
    portable = [row for row in found if row.implementation == "portable"]
    usual = [row for row in portable if row.config == CONFIGS[0] and row.recompute == "selective"]
    for row in usual:
        found += [replace(row, compiled=False), replace(row, precision="fp32")]
    others = [name for name in kinds if name in LAYERS and CONFIGS[0] in configs]
    return found + [Row(CONFIGS[0], name, "selective") for name in others]


def layer_of(name: str) -> str | MixerConfig:
    """One of the :data:`LAYERS`, or the kind that has that name."""
    return MIXERS.read(LAYERS.get(name, name), name)


def measured(row: Row) -> dict[str, Any]:
    """The row and its figures, as JSON has them."""
    config = row.settings()
    found = trace(
        config, layer_of(row.kind), compiled=row.compiled, implementation=row.implementation
    )
    return asdict(row) | figures(found)


def figures(found: Trace) -> dict[str, Any]:
    """What the table has of a trace: bytes are per token."""
    return {
        "graphs": found.forward_graphs,
        "failure": found.failure,
        "kernels": len(found.kernels),
        "bytes": round(found.bytes_per_token),
        "kept": round(found.kept),
        "peak": round(found.peak),
        "by_kernel": {name: [n, round(moved)] for name, (n, moved) in by_name(found).items()},
    }


def without_kernels() -> None:
    """As if flash-linear-attention and mamba_ssm were not installed, whoever traces where."""
    sys.modules["fla"] = sys.modules["mamba_ssm"] = None  # type: ignore[assignment]
