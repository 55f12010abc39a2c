"""A layer: a norm and a mixer, then a norm and a feed-forward network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from gam_scale.model.carry import Carried
from gam_scale.model.context import Context
from gam_scale.model.dropout import Dropout
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.parts import MixerConfig
from gam_scale.model.policy import ONLY_TO_RESIDUAL, TO_RESIDUAL
from gam_scale.model.shape import Shape

State = dict[str, Tensor]
"""What a layer remembers between tokens."""


class Block(nn.Module, ABC):
    """One layer of the stack, pre-norm and residual.

        x = x + mixer(norm1(x))
        x = x + ffn(norm2(x))

    Each kind of layer is a subclass, which makes its mixer's parameters in :meth:`make` and applies
    them to normed tokens in :meth:`mix` and :meth:`mix_next`. Without a feed-forward network, the
    first norm is the only one and is called ``norm``; a layer that is not residual is its mixer
    alone.
    """

    norm: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    ffn: Any
    """A module with ``flops_per_token()``, or None."""

    def __init__(self, layer: MixerConfig, shape: Shape) -> None:
        super().__init__()
        self.layer = layer
        self.is_residual = layer.is_residual
        ffn = layer.ffn.build(shape)
        norm = layer.norm.build(shape) if layer.is_residual else nn.Identity()
        self.add_module("norm" if ffn is None else "norm1", norm)
        self.make(shape)
        if ffn is not None:
            self.norm2 = layer.norm.build(shape)
        elif layer.counts_writes:
            self._write_once()
        self.ffn = ffn

    @abstractmethod
    def make(self, shape: Shape) -> None:
        """Make the mixer's own parameters, as attributes."""

    @abstractmethod
    def mix(self, h: Tensor, layout: Layout, context: Context | None) -> list[Tensor]:
        """Return the terms to add to the residual stream, one after another: (B, T, d) each.

        Args:
            h: the normed input (B, T, d).
            layout: the tokens' layout; nothing crosses from one document to the next.
            context: the ranks over which the sequences are cut.
        """

    @abstractmethod
    def mix_next(self, h: Tensor, state: State, layout: Layout) -> tuple[list[Tensor], State]:
        """Do as :meth:`mix` for the next tokens after ``state``; also return the new state.

        The given state may be used up.
        """

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return what the layer remembers before the first token."""

    @abstractmethod
    def mixer_flops(self, seq_len: int) -> float:
        """Return the mixer's forward FLOPs per token, in documents of ``seq_len`` tokens."""

    @property
    def reach(self) -> int | None:
        """How many tokens back the layer sees; None: all of them."""
        return None

    @property
    def mixes_by(self) -> str:
        """What mixes tokens in a layer of limited :attr:`reach`, in the plural; empty: nothing."""
        return ""

    def forward(
        self,
        x: Tensor,
        layout: Layout,
        context: Context | None = None,
        carried: Carried | None = None,
    ) -> Tensor:
        """(B, T, d) -> (B, T, d); nothing crosses from one document to the next.

        With ``carried``, start from the state in it and leave the state after these tokens there.
        """
        layout = layout.to(x.device)  # a hook may have moved x, but not the layout
        if carried is not None:
            state = carried.state() or self.init_state(x.shape[0], x.device, x.dtype)
            x, state = self.extend(x, state, layout)
            carried.keep(state)
            return x
        return self._joined(x, self.mix(self._normed(x), layout, context))

    def extend(self, x: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        """Map the next tokens (B, T, d) after ``state``; also return the state after them."""
        added, state = self.mix_next(self._normed(x), state, layout)
        return self._joined(x, added), state

    def statistics(self, x: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return what is worth watching in training, by name, as (values, heads).

        Args:
            x: the layer's input (B, T, d).
            layout: the layout of these tokens; no tokens before them are known.
        """
        return self.mixer_statistics(self._normed(x), layout)

    def mixer_statistics(self, h: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return the mixer's :meth:`statistics`, from its normed input; by default none."""
        return {}

    def flops_per_token(self, seq_len: int) -> float:
        """Return the forward FLOPs per token, in documents of ``seq_len`` tokens."""
        ffn = self.ffn.flops_per_token() if self.ffn is not None else 0.0
        return self.mixer_flops(seq_len) + ffn

    def _write_once(self) -> None:
        """Initialise output matrices as the layer's only write to the residual stream."""
        for module in self.modules():
            if isinstance(module, Linear) and module.policy["weight"] is TO_RESIDUAL:
                module.policy = module.policy | {"weight": ONLY_TO_RESIDUAL}  # of this instance

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.ffn is None else self.norm1(x)

    def _joined(self, x: Tensor, added: list[Tensor]) -> Tensor:
        if not self.is_residual:
            (x,) = added
            return x
        for branch in added:
            x = x + branch
        return x if self.ffn is None else x + self.ffn(self.norm2(x))


class MixerBlock(Block):
    """A layer whose mixer is a module of its own, followed by dropout."""

    mixer: Any
    """A module with ``init_state``, ``extend`` and ``flops_per_token()``."""

    @abstractmethod
    def make_mixer(self, shape: Shape) -> nn.Module:
        """Build the mixer."""

    def make(self, shape: Shape) -> None:
        """See :meth:`Block.make`."""
        self.mixer = self.make_mixer(shape)
        self.dropout = Dropout(shape.dropout if self.is_residual else 0.0)

    def mix(self, h: Tensor, layout: Layout, context: Context | None) -> list[Tensor]:
        """See :meth:`Block.mix`."""
        return [self.dropout(self.mixer(h, layout, context))]

    def mix_next(self, h: Tensor, state: State, layout: Layout) -> tuple[list[Tensor], State]:
        """See :meth:`Block.mix_next`; the cost does not depend on the past."""
        y, state = self.mixer.extend(h, state, layout)
        return [self.dropout(y)], state

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return the mixer's state before the first token."""
        return self.mixer.init_state(batch_size, device, dtype)

    def mixer_flops(self, seq_len: int) -> float:
        """See :meth:`Block.mixer_flops`: the same at any sequence length."""
        return self.mixer.flops_per_token()
