"""States carried from one sequence of a row to the next, to train on long texts by pieces."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gam_scale.model.layout import Layout


class Carried:
    """One block's state: before a sequence, then after it.

    An object of its own, since engines' hooks copy the dicts and tuples among a module's arguments.
    """

    def __init__(self, part: dict[str, Tensor], block: int) -> None:
        self._part, self._prefix = part, f"{block}."

    def state(self) -> dict[str, Tensor]:
        """Return what :meth:`keep` stored after the previous sequence; empty if none."""
        names = [key for key in self._part if key.startswith(self._prefix)]
        return {key.removeprefix(self._prefix): self._part[key] for key in names}

    def keep(self, state: dict[str, Tensor]) -> None:
        """Store copies without gradients; a state is often a view of a much larger tensor."""
        for name, value in state.items():
            self._part[self._prefix + name] = value.detach().clone()


class CarriedRows:
    """The states after the rows of a micro-batch, from which the next rows continue.

    A model that is called with a batch and these states starts each row from its state and replaces
    that by the state after the row's last token. A document's start, position 0, still resets a
    row.
    """

    def __init__(self, states: dict[str, Tensor] | None = None) -> None:
        self.states = dict(states or {})
        """The states of all blocks, rows along dim 0; empty: the rows continue nothing."""

    def of_block(self, block: int) -> Carried:
        """Return the state of one block."""
        return Carried(self.states, block)

    def layout(self, layout: Layout) -> Layout:
        """Return ``layout``, its positions continued from the last one up to a document's start.

        Args:
            layout: its positions count from 1 up to a row's first document start, then from 0.
        """
        if "position" not in self.states:
            self.states["position"] = layout.positions.new_full((layout.rows,), -1)
        layout = layout.continued(self.states["position"])
        self.states["position"] = layout.positions[:, -1].clone()
        return layout


class Carry:
    """The states of all rows of a rank, by micro-batch; each step continues the rows of the last.

    Args:
        rows: sequences in each micro-batch of a step.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self.clear()

    def clear(self) -> None:
        """Drop all states: the next rows continue nothing."""
        self.parts = [CarriedRows() for _ in self.rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Return all rows' states, one after another along dim 0; empty if there are none."""
        parts = [part.states for part in self.parts]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Continue from ``states`` of as many rows, on the device where they are."""
        ends = list(accumulate(self.rows))
        self.parts = [
            CarriedRows({key: value[end - n : end].clone() for key, value in states.items()})
            for n, end in zip(self.rows, ends, strict=True)
        ]
