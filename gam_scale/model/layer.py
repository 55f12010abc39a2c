"""A single layer to use in your own model: ``from gam_scale import Layer`` (docs/layer.md)."""

from typing import Any

import torch
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.model.block import State
from gam_scale.model.config import ModelConfig
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.strict import from_dict


class Layer(nn.Module):
    """One residual layer of the stack: norm, mixer, norm, feed-forward network.

    In training, it maps all tokens of a sequence at once; in generation, :meth:`step` maps the next
    tokens, given a state. Both compute the same function.

    Args:
        kind: kind of the mixer, a key of ``gam_scale.MIXERS``: ``"delta"``, ``"attention"``, ...
        d_model: width of the residual stream.
        n_layers: layers in your stack; with more, initial weights that write to the residual
            stream are smaller.
        context: tokens of a text, the default of the longest horizon of forgetting gates.
        rotary: whether to turn queries and keys by rotary positions.
        dropout: probability, after each branch.
        seed: seed of the initial weights.
        **settings: settings of the kind, as in ``model.layers`` of a config file, including
            ``ffn`` and ``norm``.

    Raises:
        UserError: the kind is unknown, it has no such setting, or values conflict.
    """

    def __init__(
        self,
        kind: str,
        d_model: int,
        *,
        n_layers: int = 1,
        context: int = 2048,
        rotary: bool = False,
        dropout: float = 0.0,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        values = {
            "layers": [{"kind": kind, **settings}],
            "d_model": d_model,
            "n_layers": n_layers,
            "max_seq_len": context,
            "position": "rotary" if rotary else "none",
            "dropout": dropout,
        }
        self.config = from_dict(ModelConfig, values, "model")
        self.config.check()
        self.block = self.config.stack()[0].build(self.config.shape)
        initialise(self.block, self.config, seed)

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """Map (B, T, d_model) to the same shape; token t sees tokens up to t.

        Args:
            x: the residual stream.
            layout: where documents begin, for rows that hold several; None: one text per row.

        Raises:
            UserError: ``x`` has another shape, or is empty.
        """
        self._check(x)
        layout = Layout.stream(*x.shape[:2]) if layout is None else layout
        return self.block(x, self._turned(layout, x))

    def init_state(self, batch_size: int = 1) -> State:
        """Return the state before the first token of ``batch_size`` texts."""
        weight = next(self.parameters())
        state = self.block.init_state(batch_size, weight.device, weight.dtype)
        return state | {"seen": torch.zeros((), dtype=torch.int64)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next one or more tokens (B, T, d_model); also return the state after them.

        The given state is used up: attention writes into its buffers. Clone its tensors first to
        continue one text twice. Without attention, or with a window, neither the state nor the cost
        of a token grows with the text.
        """
        self._check(x)
        seen, (rows, length, _) = int(state["seen"]), x.shape
        layout = Layout.stream(rows, length, first=seen)
        own = {name: value for name, value in state.items() if name != "seen"}
        y, own = self.block.extend(x, own, self._turned(layout, x))
        return y, own | {"seen": torch.tensor(seen + length)}

    def _check(self, x: Tensor) -> None:
        width = self.config.d_model
        if x.dim() != 3 or x.shape[2] != width or not x.numel():
            raise UserError(
                f"x has the shape {tuple(x.shape)}; expected (rows, tokens, {width}), at least one "
                "of each"
            )

    def _turned(self, layout: Layout, x: Tensor) -> Layout:
        return layout.to(x.device).turned(self.config.rotation(x.dtype))
