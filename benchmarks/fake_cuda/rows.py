"""The rows of the table: which blocks are traced, and what is noted of each."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from benchmarks.fake_cuda.block import Trace, by_name, trace
from gam_scale.config import RunConfig, load_config
from gam_scale.hardware.peak import Precision
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel.blocks import Recompute

KINDS = tuple(implementations())
CONFIGS = ("gam_1b", "ctx16k")
HEADS = {"gam_1b": 12, "ctx16k": 16}
"""Of memories: 128 channels each, and 64."""
RECOMPUTE: tuple[Recompute, ...] = ("none", "selective", "full")
KERNELS = {kind: MIXERS[kind].kernel for kind in KINDS if MIXERS[kind].kernel}
"""Implementations beside the portable one. Their packages need not be there to be scheduled."""


@dataclass(frozen=True)
class Row:
    """One block, by default settings, in one micro-batch of a shipped config.

    In the place of the config's own layers, which any of them may become.
    """

    config: str  # of configs/, all of whose settings hold but heads of memories and the following
    kind: str
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

    Those are kernels, of each config, and uncompiled and fp32 layers of the first.
    """
    found = [Row(*parts) for parts in product(configs, kinds, modes)]
    for row in [row for row in found if row.recompute == "selective" and row.kind in KERNELS]:
        found.append(replace(row, implementation=KERNELS[row.kind]))
    portable = [row for row in found if row.implementation == "portable"]
    usual = [row for row in portable if row.config == CONFIGS[0] and row.recompute == "selective"]
    for row in usual:
        found += [replace(row, compiled=False), replace(row, precision="fp32")]
    return found


def measured(row: Row) -> dict[str, Any]:
    """The row and its figures, as JSON has them."""
    config = row.settings()
    found = trace(config, row.kind, compiled=row.compiled, implementation=row.implementation)
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
