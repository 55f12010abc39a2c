"""States that a row's next sequence goes on from: training on a long text piece by piece."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gam_scale.model.layout import Layout


class Carried:
    """One block's state before a sequence, and then after it.

    An object of its own, since engines' hooks copy the dicts and tuples among a module's arguments.
    """

    def __init__(self, part: dict[str, Tensor], block: int) -> None:
        self._part, self._prefix = part, f"{block}."

    def state(self) -> dict[str, Tensor]:
        """As :meth:`keep` got it from the sequence before; empty if there was none."""
        names = [key for key in self._part if key.startswith(self._prefix)]
        return {key.removeprefix(self._prefix): self._part[key] for key in names}

    def keep(self, state: dict[str, Tensor]) -> None:
        """Copies, without gradients: a state is often a view of something much larger."""
        for name, value in state.items():
            self._part[self._prefix + name] = value.detach().clone()


class CarriedRows:
    """The states that the rows of a micro-batch ended in, from which their continuations start.

    A model that is called with a batch and these states starts each row from its state, and writes
    the state after the row's last token in its place. A document's start, position 0, resets a row
    all the same.
    """

    def __init__(self, states: dict[str, Tensor] | None = None) -> None:
        self.states = dict(states or {})
        """Of all blocks, rows along dim 0; empty: nothing was before."""

    def of_block(self, block: int) -> Carried:
        """The state of one block."""
        return Carried(self.states, block)

    def layout(self, layout: Layout) -> Layout:
        """``layout``, counted on from the last one up to each row's first document start.

        Args:
            layout: counted from 1 up to the row's first document start, from 0 after one.
        """
        if "position" not in self.states:
            self.states["position"] = layout.positions.new_full((layout.rows,), -1)
        layout = layout.continued(self.states["position"])
        self.states["position"] = layout.positions[:, -1].clone()
        return layout


class Carry:
    """All rows of a rank, micro-batch by micro-batch: each step's continue those of the last.

    Args:
        rows: sequences of each of a step's micro-batches.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = list(rows)
        self.clear()

    def clear(self) -> None:
        """Go on from nothing."""
        self.parts = [CarriedRows() for _ in self.rows]

    def state_dict(self) -> dict[str, Tensor]:
        """All rows' states, one after another along dim 0; empty if there are none."""
        parts = [part.states for part in self.parts]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def load_state_dict(self, states: dict[str, Tensor]) -> None:
        """Go on from ``states`` of as many rows, on the device where they are."""
        ends = list(accumulate(self.rows))
        self.parts = [
            CarriedRows({key: value[end - n : end].clone() for key, value in states.items()})
            for n, end in zip(self.rows, ends, strict=True)
        ]
