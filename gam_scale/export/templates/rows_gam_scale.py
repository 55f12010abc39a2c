"""Layout of a padded or packed batch, from the mask and positions that transformers passes."""

import torch
from torch import Tensor

from gam_scale.export.templates.cache_gam_scale import GAMScaleCache, next_positions
from gam_scale.model.layout import Layout


class Rows:
    """Layout and order of the tokens of one call.

    Padding must not reach any state. Where padding stands after or between tokens, each row is
    computed with its padding moved to the front, every pad as a document of its own, from which
    nothing is carried over.

    Attributes:
        layout: layout of the tokens in the order in which the layers see them.
        order: (B, T) index of the token at each place of a row; None: as the tokens came.
        positions: (B,) position of each row's next token; None: the number of tokens before it, in
            all rows.
        begun: whether every row has had a token other than padding.
    """

    def __init__(
        self,
        layout: Layout,
        order: Tensor | None = None,
        positions: Tensor | None = None,
        begun: bool = True,
    ) -> None:
        self.layout, self.order, self.positions, self.begun = layout, order, positions, begun

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        device: torch.device,
        mask: Tensor | None,
        position_ids: Tensor | None,
        cache: GAMScaleCache | None,
    ) -> "Rows":
        """Make the rows of a call with (B, T) tokens.

        Args:
            shape: B and T.
            device: the layout's device.
            mask: (B, T) or, with the tokens in the cache, (B, seen + T): 0 at padding.
            position_ids: (B or 1, T); a document starts at every 0. Ignored in padded rows, whose
                tokens are counted.
            cache: the states from which the rows continue.

        Raises:
            ValueError: the mask has another shape, or there is padding in a row that has tokens in
                the cache.
        """
        rows, length = shape
        seen = 0 if cache is None else cache.seen
        own = cache is not None and cache.positions is not None
        new = _of_new(mask, rows, length, seen)
        if length == 1 and seen and cache is not None and cache.begun:
            new = None  # texts that have begun go on: no need to read the mask
        if new is not None:
            new = new.cpu()
            behind = bool((new[:, 1:] < new[:, :-1]).any())
            if bool(new.all()) or (cache is None and not _is_before_a_token(new)):
                new = None  # no padding, or only padding that no token sees
        if new is not None:
            return cls._padded(new, device, cache, behind)
        if position_ids is not None and not own:
            at = position_ids.cpu().expand(shape)
            if not torch.equal(at, torch.arange(seen, seen + length).expand(shape)):
                layout = Layout.of(at).to(device)
                return cls(layout, positions=layout.positions[:, -1] + 1)
        if cache is None or not own:
            return cls(Layout.stream(rows, length, first=seen).to(device))
        # No document starts, so that the CPU need not know the positions.
        counted = torch.arange(1, length + 1, device="cpu").expand(shape)
        last = next_positions(cache, rows, device) - 1
        layout = Layout.of(counted).to(device).continued(last)
        return cls(layout, positions=layout.positions[:, -1] + 1)

    @classmethod
    def _padded(
        cls, mask: Tensor, device: torch.device, cache: GAMScaleCache | None, behind: bool
    ) -> "Rows":
        rows, length = mask.shape
        before = torch.zeros(rows, dtype=torch.int64)
        if cache is not None:
            before = next_positions(cache, rows, torch.device("cpu"))
        pads = length - mask.sum(1)
        if bool(((before > 0) & (pads > 0)).any()):
            raise ValueError(
                "attention_mask has padding in a row that goes on from tokens in past_key_values, "
                "where padding would be remembered; expected as many new tokens in all such rows"
            )
        positions = torch.arange(length) - pads.unsqueeze(1)
        positions = torch.where(positions < 0, 0, positions + before.unsqueeze(1))
        order = mask.argsort(dim=1, stable=True) if behind else None  # padding first
        layout = Layout.of(positions).to(device)
        after = (before + mask.sum(1)).to(device)
        begun = bool((after > 0).all())
        return cls(layout, None if order is None else order.to(device), after, begun)

    def ordered(self, x: Tensor) -> Tensor:
        """Return (B, T, d) in the order in which the layers see it."""
        return x if self.order is None else x.gather(1, self._index(self.order, x))

    def restored(self, x: Tensor) -> Tensor:
        """Return (B, T, d) in its original order, which undoes :meth:`ordered`."""
        return x if self.order is None else x.gather(1, self._index(self.order.argsort(1), x))

    @staticmethod
    def _index(order: Tensor, x: Tensor) -> Tensor:
        return order.to(x.device).unsqueeze(-1).expand_as(x)


def _of_new(mask: Tensor | None, rows: int, length: int, seen: int) -> Tensor | None:
    """Return which of the new tokens are no padding, (B, T) bool; None without a mask."""
    if mask is None:
        return None
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (length, seen + length):
        both = f" or ({rows}, {seen + length})" if seen else ""
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}; expected ({rows}, {length}){both}, "
            "1 at tokens and 0 at padding"
        )
    return mask[:, -length:] != 0


def _is_before_a_token(mask: Tensor) -> bool:
    """Return whether padding stands just before a token in any row."""
    return bool((mask[:, 1:] > mask[:, :-1]).any())
