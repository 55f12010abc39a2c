"""Counts of a model's parameters: where they are, and how evenly they shard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from gam_scale.config import ModelConfig
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.model.policy import keeps_fp32
from gam_scale.plan.activations import FP32


@dataclass(frozen=True)
class Weights:
    """Counts of a model's parameters."""

    model: LanguageModel  # on the meta device

    @classmethod
    def of(cls, config: ModelConfig) -> "Weights":
        """Describe the model of ``config``, whose ``vocab_size`` must be known."""
        return cls(outline(config))

    @cached_property
    def total(self) -> int:
        return self.model.n_parameters()

    @cached_property
    def blocks(self) -> list[int]:
        """Number of parameters of each block."""
        return [sum(p.numel() for p in block.parameters()) for block in self.model.blocks]

    def adjacent(self, n_blocks: int) -> int:
        """Return the most parameters of ``n_blocks`` adjacent blocks, or of all if fewer."""
        n = min(n_blocks, len(self.blocks))
        return max(sum(self.blocks[i : i + n]) for i in range(len(self.blocks) - n + 1))

    @property
    def outside(self) -> int:
        """Parameters of embeddings, final norm and head, which are gathered together."""
        return self.total - sum(self.blocks)

    @property
    def head(self) -> int:
        return self.model.head_weight.numel()

    def of_modules(self, classes: Sequence[type], above: int = 0) -> int:
        """Count elements of parameters larger than ``above`` in modules of just these classes."""
        modules = (m for m in self.model.modules() if type(m) in classes)
        sizes = (p.numel() for m in modules for p in m.parameters(recurse=False))
        return sum(n for n in sizes if n > above)

    def up_to(self, threshold: int) -> int:
        """Count elements of the parameters that have at most ``threshold`` elements."""
        return sum(p.numel() for p in self.model.parameters() if p.numel() <= threshold)

    def row_shard(self, ranks: int) -> int:
        """Count the first rank's elements if ``ranks`` split each parameter by rows (FSDP2).

        With more ranks than rows the last ranks hold nothing, but all ranks send padded rows.
        """
        return sum(_row_shard(p.shape, ranks) for p in self.model.parameters())

    def gathered_bytes(self, ranks: int, compute: int) -> tuple[int, int]:
        """Return the bytes that FSDP2 gathers: of the model; of last block, embeddings and norm.

        Args:
            ranks: number of ranks that gather.
            compute: bytes of a number that need not be fp32.
        """
        *others, _ = self.model.blocks
        middle = sum(_gathered(block, ranks, compute) for block in others)
        whole = _gathered(self.model, ranks, compute)
        return whole, whole - middle


def _gathered(module: nn.Module, ranks: int, compute: int) -> int:
    total = 0
    for part in module.modules():
        kept = keeps_fp32(part)
        for name, parameter in part.named_parameters(recurse=False):
            size = FP32 if name in kept else compute
            total += ranks * _row_shard(parameter.shape, ranks) * size
    return total


def _row_shard(shape: Sequence[int], ranks: int) -> int:
    return math.ceil(shape[0] / ranks) * math.prod(shape[1:])
