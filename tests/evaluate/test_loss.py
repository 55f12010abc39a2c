"""Test evaluation losses: rows that pad a batch, progress lines, targets with long contexts."""

import numpy as np
import pytest
import torch

from gam_scale.data.packing import IGNORE, make_batch
from gam_scale.evaluate.loss import late_targets, mean_loss, pad_rows
from gam_scale.evaluate.text import counted
from gam_scale.model.rotary import Rotation
from gam_scale.parallel.world import World

ROWS, T, BOS = 5, 12, 1


@pytest.mark.parametrize("documents", ["reset", "concatenate"])
@pytest.mark.parametrize("block", ["gam", "attention"])
def test_filled_up_batches_have_the_same_loss(small_model, block, documents):
    model = small_model(block)
    rng = np.random.default_rng(0)
    batches = []
    for n in (ROWS, 3, 1):
        rows = [rng.integers(1, 31, size) for size in (T + 1, T + 1, T - 2, T + 1, 2)[:n]]
        batches.append(make_batch(rows, T, BOS, documents))
    found = []
    for some in (batches, [pad_rows(batch, ROWS) for batch in batches]):

        def loss_sum(batch):
            with torch.no_grad():
                return model(batch.tokens, batch.targets, batch.layout)

        found.append(mean_loss(loss_sum, some, np.ones(31), World(0, 1, 0, 1, "cpu")))
    assert found[0].tokens == found[1].tokens == found[0].bytes
    assert found[1].loss == pytest.approx(found[0].loss, rel=1e-5)  # fp32, in other shapes


def test_rows_are_added_behind_the_others():
    batch = make_batch([np.array([5, BOS, 6, 7])], 3, BOS, "reset").turned(Rotation(9.0, (4,)))
    assert pad_rows(batch, 1) is batch
    full = pad_rows(batch, 3)
    assert full.tokens.tolist() == [[5, BOS, 6], [0, 0, 0], [0, 0, 0]]
    assert (full.targets[1:] == IGNORE).all()
    assert full.layout.positions.tolist() == [[0, 0, 1], [0, 1, 2], [0, 1, 2]]
    assert full.layout.turns[4][0].shape == (3, 3, 2)
    stream = pad_rows(make_batch([np.arange(2, 6)], 3, BOS, "concatenate", goes_on=True), 2)
    assert (stream.layout.rows, stream.layout.positions.tolist()) == (2, [[1, 2, 3]])


def test_a_long_evaluation_says_how_far_it_is(capsys):
    rows = [np.arange(1, T + 2), np.arange(1, T - 1)]
    given = [make_batch(rows, T, BOS, "reset"), make_batch(rows[:1], T, BOS, "reset")]
    assert list(counted(given, seconds=60)) == given and capsys.readouterr().err == ""
    assert list(counted(given, seconds=0)) == given
    said = [f"evaluating: {tokens} tokens so far" for tokens in (2 * T - 3, 3 * T - 3)]
    assert capsys.readouterr().err.splitlines() == said


def test_late_targets_have_their_tokens_of_context() -> None:
    row = np.array([1, 5, 5, 5, 1, 5, 5, 5, 5])
    batch = make_batch([row], 8, 1, "reset")
    late = late_targets(batch, 3).targets
    # The third and fourth targets of two documents, the second of which ends the row.
    assert (late != IGNORE).tolist() == [[False, False, True, True] * 2]
    assert torch.equal(late[late != IGNORE], batch.targets[late != IGNORE])
    assert late_targets(batch, 0) is batch
    one = make_batch([row], 8, 1, "concatenate")
    assert (late_targets(one, 8).targets != IGNORE).tolist() == [[False] * 7 + [True]]
