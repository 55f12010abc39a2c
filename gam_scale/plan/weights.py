"""How many parameters a model has, where, and how evenly they shard."""

import math
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from gam_scale.config import ModelConfig
from gam_scale.model.lm import LanguageModel, outline


@dataclass(frozen=True)
class Weights:
    """Counts of parameters; all blocks are alike."""

    model: LanguageModel  # on the meta device

    @classmethod
    def of(cls, config: ModelConfig) -> "Weights":
        """Of the model that ``config`` describes; ``vocab_size`` must be known."""
        return cls(outline(config))

    @cached_property
    def total(self) -> int:
        return self.model.n_parameters()

    @cached_property
    def block(self) -> int:
        return sum(p.numel() for p in self.model.blocks[0].parameters())

    @property
    def n_blocks(self) -> int:
        return len(self.model.blocks)

    @property
    def outside(self) -> int:
        """Embeddings and the final norm, which the head's tie keeps together."""
        return self.total - self.n_blocks * self.block

    @property
    def head(self) -> int:
        return self.model.embedding.weight.numel()

    @cached_property
    def cast(self) -> int:
        """Those of a block that autocast copies for its matmuls: A_log and dt stay in fp32."""
        return sum(
            p.numel()
            for name, p in self.model.blocks[0].named_parameters()
            if p.dim() == 2 and "A_log" not in name and "dt_proj" not in name
        )

    @cached_property
    def linear(self) -> int:
        """Those of plain linear layers, which DeepSpeed sends in autocast's precision."""
        modules = (m for m in self.model.modules() if type(m) is nn.Linear)
        return sum(p.numel() for m in modules for p in m.parameters())

    def linear_above(self, threshold: int) -> int:
        """As :attr:`linear`, of parameters with more than ``threshold`` elements."""
        modules = (m for m in self.model.modules() if type(m) is nn.Linear)
        sizes = (p.numel() for m in modules for p in m.parameters())
        return sum(n for n in sizes if n > threshold)

    def up_to(self, threshold: int) -> int:
        """Those in parameters of at most ``threshold`` elements."""
        return sum(p.numel() for p in self.model.parameters() if p.numel() <= threshold)

    def row_shard(self, ranks: int) -> int:
        """What the first of ``ranks`` holds when each parameter is split by rows (FSDP2).

        With more ranks than rows the last ranks hold nothing of it, but all send padded rows.
        """
        return sum(
            math.ceil(p.shape[0] / ranks) * (p.numel() // p.shape[0])
            for p in self.model.parameters()
        )
