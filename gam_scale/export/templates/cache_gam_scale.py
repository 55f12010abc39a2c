"""Cache of a GAM Scale language model's states, in the form that transformers passes around."""

from collections.abc import Callable

import torch
from torch import Tensor

State = dict[str, Tensor]


class LayerState:
    """One layer's state, which a block reads, and replaces by the state after its own tokens."""

    def __init__(self, state: State | None = None) -> None:
        self._state = state or {}

    def state(self) -> State:
        """Return the state after the tokens so far; empty before the first one."""
        return self._state

    def keep(self, state: State) -> None:
        """Replace the state; gradients flow through it, as through a cache of keys and values."""
        self._state = state

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor that has rows by what ``function`` makes of it."""
        self._state = {k: function(v) if v.dim() else v for k, v in self._state.items()}


class GAMScaleCache:
    """The states of all layers, passed as ``past_key_values`` and filled in place.

    ``GAMScaleCache()`` makes an empty cache. A cache cannot forget its last tokens, so it cannot be
    cropped; ``copy.deepcopy`` before a call keeps it as it was.

    Attributes:
        seen: tokens of each row so far, padding included.
        positions: (B,) position of each row's next token; None: ``seen`` in all rows.
        begun: whether every row has had a token other than padding.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = [False]

    def __init__(self) -> None:
        self.seen = 0
        self.positions: Tensor | None = None
        self.begun = True
        self._layers: dict[int, LayerState] = {}

    def layer(self, index: int) -> LayerState:
        """Return the state of one layer."""
        return self._layers.setdefault(index, LayerState())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of tokens seen so far, padding included."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue from rows ``beam_idx`` (B,) of the batch, as beam search asks."""
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep rows ``indices`` (B,) of the batch."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch ``repeats`` times."""
        self._map(lambda x: x.repeat_interleave(repeats, 0))

    def crop(self, *args: int) -> None:
        """Refuse.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a GAM Scale cache cannot forget its last tokens, which are part of its states; "
            "expected a copy.deepcopy of it from before they came"
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.positions is not None:
            self.positions = function(self.positions)
        for layer in self._layers.values():
            layer.map(function)


def cache_for(past: object, use_cache: bool) -> GAMScaleCache | None:
    """Return the cache that a call continues from and fills, or None if it uses no cache.

    Raises:
        ValueError: ``past`` is a cache of another kind.
    """
    if past is None:
        return GAMScaleCache() if use_cache else None
    if not isinstance(past, GAMScaleCache):
        raise ValueError(
            f"past_key_values is a {type(past).__name__}, which has no place for what these layers "
            "remember; expected past_key_values of an earlier call, or None"
        )
    return past


def next_positions(cache: GAMScaleCache, rows: int, device: torch.device) -> Tensor:
    """Return the position of each row's next token, (B,), on ``device``."""
    if cache.positions is not None:
        return cache.positions.to(device)
    return torch.full((rows,), cache.seen, device=device)
