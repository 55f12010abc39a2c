"""The rows of the table: which blocks are traced, and which figures each row has."""

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
"""Heads of memories: of 128 channels in gam_1b, of 64 in ctx16k."""
LAYERS: dict[str, dict[str, Any]] = {
    "gam_delta": {"kind": "gam_delta", "n_heads": 12},
    "gdn": {"kind": "gdn", "n_heads": 12},
    "kda": {"kind": "kda", "n_heads": 12},
    "gdn2": {"kind": "gdn2", "n_heads": 12},
    "grouped_queries": {"kind": "attention", "n_heads": 12, "n_kv_heads": 3, "qk_norm": True},
    "swiglu_rmsnorm": {"kind": "static", "ffn": "swiglu", "norm": "rmsnorm"},
}
"""By name, layers with other settings and parts, which plans have to estimate from other rows."""
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
KERNELS = {kind: MIXERS[kind].kernel for kind in KINDS if MIXERS[kind].kernel}
"""Implementations other than the portable one. Tracing them does not need their packages."""


@dataclass(frozen=True)
class Row:
    """One block with default settings in one micro-batch of a shipped config.

    The block is traced in place of the config's own layers.
    """

    config: str  # in configs/; its settings hold, but for heads of memories and the fields below
    kind: str  # or one of LAYERS
    recompute: Recompute
    compiled: bool = True
    precision: Precision = "bf16"
    implementation: str = "portable"

    def settings(self) -> RunConfig:
        """Return the whole config."""
        config = load_config(f"configs/{self.config}.json")
        train = replace(config.train, recompute=self.recompute, precision=self.precision)
        memory = replace(config.model.memory, n_heads=HEADS[self.config])
        return replace(config, model=replace(config.model, memory=memory), train=train)


def rows(kinds: Sequence[str], configs: Sequence[str], modes: Sequence[Recompute]) -> list[Row]:
    """Return the table's rows: every combination, compiled, and more with selective recomputation.

    The latter are implementations in kernels for each config; and for the first config uncompiled
    and fp32 layers, and the :data:`LAYERS`.
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
    """Return one of the :data:`LAYERS`, or the kind of that name, as a config's layer."""
    return MIXERS.read(LAYERS.get(name, name), name)


def measured(row: Row) -> dict[str, Any]:
    """Trace the row and return it with its figures, for JSON."""
    config = row.settings()
    found = trace(
        config, layer_of(row.kind), compiled=row.compiled, implementation=row.implementation
    )
    return asdict(row) | figures(found)


def figures(found: Trace) -> dict[str, Any]:
    """Return the figures of a trace that the table has; bytes are per token."""
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
    """Hide flash-linear-attention and mamba_ssm, so that traces are the same on any machine."""
    sys.modules["fla"] = sys.modules["mamba_ssm"] = None  # type: ignore[assignment]
