"""Test state-tracking tasks: labels against products step by step, and which are graded."""

from itertools import accumulate

import numpy as np
import pytest
import torch

from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.recall import RecallResult, RecallScore, recall_config
from gam_scale.evaluate.state_size import StateSize
from gam_scale.evaluate.tables import recall_scores
from gam_scale.evaluate.tasks.task import task_of, tasks
from gam_scale.model.config import ModelConfig
from gam_scale.train.recall import train_recall

SWAPS = [(1, 0, 2), (0, 2, 1), (2, 1, 0)]


def test_each_kind_is_registered_by_its_file():
    assert list(tasks()) == ["parity", "recall", "s3", "s3_swaps"]
    assert all(cls.kind == kind for kind, cls in tasks().items())


def test_parity_counts_ones():
    batch = task_of("parity").of([33], 2).texts(20, seed=3)
    expected = batch.tokens.numpy().cumsum(1) % 2
    assert (batch.targets.numpy() == expected).all() and 0.3 < expected.mean() < 0.7


@pytest.mark.parametrize("kind", ["s3", "s3_swaps"])
def test_labels_of_a_group_are_products_of_permutation_matrices(kind):
    """In texts of one token the label is the token, so ids number the group's elements."""
    cls = task_of(kind)
    one = cls.of([1], 6).texts(400, seed=0)
    assert (one.tokens == one.targets).all()
    batch = cls.of([50], 6).texts(5, seed=1)
    identity = np.eye(3)
    order = [np.eye(3)[list(p)] for p in _by_number()]
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        # Row i of M_p is row p[i] of the unit matrix, so M_p M_q is M_r with r[i] = q[p[i]].
        products = list(
            accumulate((order[t] for t in tokens), lambda a, b: b @ a, initial=identity)
        )
        found = [next(i for i, m in enumerate(order) if (m == p).all()) for p in products[1:]]
        assert found == targets
    assert set(one.tokens.flatten().tolist()) == (
        set(range(6)) if kind == "s3" else {_by_number().index(p) for p in SWAPS}
    )


def _by_number() -> list[tuple[int, ...]]:
    """Return the permutations by their ids: in lexicographic order, the identity first."""
    return [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def test_the_end_of_a_text_is_graded():
    task = task_of("parity").of([40], 2)
    counted = task.graded(task.texts(3, seed=0).targets)
    assert counted.shape == (3, 40) and counted.sum(1).tolist() == [task.asked] * 3 == [10] * 3
    assert torch.equal(counted[0].nonzero()[0], torch.tensor([30]))


@pytest.mark.parametrize("kind", ["parity", "s3", "s3_swaps"])
def test_a_guess_is_among_the_elements_that_a_place_can_have(kind):
    """At each of the last two places of long texts, the likeliest element's share is the guess."""
    cls = task_of(kind)
    size = len(cls.products)
    task = cls.of([21], size)
    assert task.chance == 1 / size
    for targets in task.texts(4000, seed=0).targets[:, -2:].unbind(1):
        counts = torch.bincount(targets, minlength=size) / len(targets)
        assert counts.count_nonzero() == round(1 / task.guess)
        # Three standard errors of a share of 4,000 texts, where the share is at most a half.
        assert counts.max().item() == pytest.approx(task.guess, abs=0.024)


@pytest.mark.parametrize(("kind", "guess"), [("s3", None), ("s3_swaps", "0.333")])
def test_a_table_has_a_guess_that_is_better_than_chance(kind, guess):
    task = task_of(kind).of([4], 6)
    score = RecallScore(task, Interval(0.5, 0.4, 0.6), 10)
    result = RecallResult("delta", ModelConfig(), 1, StateSize(1, 0), [score], 1e-3, 1, 1.0)
    rows = {row[0]: row[1] for row in recall_scores([result]).rows}
    assert rows["guess among all values"] == "0.167"
    assert rows.get("guess among products of as many swaps") == guess and len(rows) == 2 + bool(
        guess
    )


def test_a_task_is_learned_by_the_command_for_recall():
    small = ["recall.train=[[4]]", "recall.test=[[4],[8]]", "recall.steps=150", "model.d_model=16"]
    small += ["recall.test_texts=100", "recall.lrs=[1e-2]", "recall.stop_at=2.0"]
    found = train_recall("attention", *recall_config("attention", "parity", small))
    assert [s.task.label for s in found.scores] == ["4", "8"]
    assert found.scores[0].accuracy.mean > 0.9  # all sixteen texts of four bits, learned by heart


@pytest.mark.parametrize(
    ("preset", "override", "message"),
    [
        ("parity", "recall.train=[[8,2]]", r"list \[8, 2\] for parity; they list \[tokens\]"),
        ("s3", "recall.vocab_size=5", "s3 of 4 tokens with recall.vocab_size 5 is impossible"),
        ("s3", "recall.filler=blank", "recall.filler is blank, but s3 has none"),
        ("parity", "recall.test=[]", "recall.test is empty; expected at least one"),
    ],
)
def test_what_cannot_be_asked(preset, override, message):
    with pytest.raises(UserError, match=message):
        recall_config("delta", preset, [override])
