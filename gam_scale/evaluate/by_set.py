"""Loss of each validation set when several sets are evaluated together."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import IGNORE, Batch, num_sequences
from gam_scale.data.stream import read_of_each
from gam_scale.evaluate.loss import LossResult
from gam_scale.model.widest import widest
from gam_scale.parallel.world import World


class RowSets:
    """Maps each row of :func:`~gam_scale.data.stream.valid_batches` to the set that it is from.

    Args:
        lengths: tokens of each set.
        seq_len: tokens of a row.
        max_tokens: most tokens to predict, shared by the sets; 0: all.
        batch_size: rows of a batch.
        readers: number of readers (``world.axes.readers``) that take the batches in turn.
    """

    def __init__(
        self, lengths: Sequence[int], seq_len: int, max_tokens: int, batch_size: int, readers: int
    ) -> None:
        rows = [num_sequences(n, seq_len) for n in read_of_each(lengths, max_tokens)]
        self._set_of_row = np.repeat(np.arange(len(rows)), rows)
        self._batch_size, self._readers = batch_size, readers

    def sets_of_rows(self, turn: int, reader: int) -> np.ndarray:
        """Return the set of each row in a reader's batch of a turn; empty if no rows are left."""
        first = (turn * self._readers + reader) * self._batch_size
        return self._set_of_row[first : first + self._batch_size]

    def max_sets(self, turn: int) -> int:
        """Return the largest number of sets in any reader's batch of a turn.

        All ranks make this many forward passes, because they have to meet in each.
        """
        return max(
            len(set(self.sets_of_rows(turn, reader).tolist())) for reader in range(self._readers)
        )


def mean_losses(
    loss_sum: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    world: World,
    row_sets: RowSets,
    n_sets: int,
) -> tuple[LossResult, list[LossResult]]:
    """Return the mean loss of all sets together and of each set.

    The first is bit for bit that of :func:`~gam_scale.evaluate.loss.mean_loss`. A batch with rows
    of several sets is read once as a whole and once more for each of the sets.

    Args:
        loss_sum: maps a batch to its loss sum, a scalar.
        batches: this rank's share; rows without targets may pad the end of a batch.
        token_bytes: (vocab_size,) bytes that each id stands for.
        world: the ranks to sum over.
        row_sets: maps the rows of the batches to sets.
        n_sets: number of sets.
    """
    nats = torch.zeros(1 + n_sets, dtype=widest(world.device), device=world.device)
    counts = np.zeros((1 + n_sets, 2))  # columns: tokens, bytes; row 0: all sets
    for turn, batch in enumerate(batches):
        set_of_row = row_sets.sets_of_rows(turn, world.reader)
        whole = loss_sum(batch.to(world.device))
        nats[0] += whole
        counts[0] += _counts(batch, token_bytes)
        sets, passes = np.unique(set_of_row).tolist(), row_sets.max_sets(turn)
        for i in range(passes):
            mine = sets[i] if i < len(sets) else None
            part = batch if passes == 1 else _only(batch, set_of_row == mine)
            total = whole if passes == 1 else loss_sum(part.to(world.device))
            if mine is not None:
                nats[1 + mine] += total
                counts[1 + mine] += _counts(part, token_bytes)
    sums = np.array(world.sum(*nats.tolist(), *counts.T.flatten().tolist())).reshape(3, -1)
    means = [LossResult(n / max(1, t), int(t), int(b)) for n, t, b in sums.T.tolist()]
    return means[0], means[1:]


def _counts(batch: Batch, token_bytes: np.ndarray) -> np.ndarray:
    """Return the number of targets and the number of bytes that they stand for."""
    targets = batch.targets[batch.targets != IGNORE].numpy()
    return np.array([targets.size, token_bytes[targets].sum()])


def _only(batch: Batch, rows: np.ndarray) -> Batch:
    """Return the batch with targets only in the rows that the mask ``rows`` selects.

    The mask may be shorter than the batch, whose last rows are then not selected.
    """
    kept = torch.zeros(len(batch.targets), 1, dtype=torch.bool)
    kept[: len(rows), 0] = torch.from_numpy(rows)
    return batch._replace(targets=torch.where(kept, batch.targets, IGNORE))
