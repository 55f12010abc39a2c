"""Multiple choice by likelihood: the answer is the continuation that a model finds likeliest."""

import math
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.errors import UserError
from gam_scale.evaluate.downstream.pairs_of_text import continued, n_bytes
from gam_scale.evaluate.downstream.rows import read_items
from gam_scale.evaluate.downstream.task import (
    DownstreamTask,
    Figures,
    Material,
    Measure,
    downstream,
)
from gam_scale.evaluate.interval import proportion
from gam_scale.evaluate.scorer import Scorer, Text
from gam_scale.strict import option, shown


@dataclass(frozen=True)
class Item:
    """One multiple-choice question."""

    context: str
    choices: list[str]
    answer: int
    """Index of the right choice, from 0."""


@downstream("choice")
@dataclass(frozen=True)
class Choice(DownstreamTask):
    """Questions of a file, each answered by the choice of the greatest likelihood.

    ``accuracy`` compares the log-probabilities of whole choices, like acc of lm-evaluation-harness;
    ``accuracy_per_byte`` divides them by UTF-8 bytes, where the harness's acc_norm divides by
    characters. ``bits_per_byte`` is the cost of the right choices, which falls long before a small
    model answers right; the space before a choice is one of the bytes.
    """

    file: str = option(
        MISSING,
        'file of JSON lines, {"context": TEXT, "choices": [TEXT, ...], "answer": NUMBER from 0}',
    )
    delimiter: str = option(" ", "text between a context and each choice")
    max_items: int = option(
        0, "number of questions to ask, from the start of the file; 0: all", at_least=0
    )

    def ready(self, material: Material) -> Measure:
        """See :meth:`DownstreamTask.ready`."""
        items = [_item(row, where) for row, where in read_items(Path(self.file), self.max_items)]
        pairs = [
            continued(material.tokenizer, item.context, self.delimiter + choice, material.seq_len)
            for item in items
            for choice in item.choices
        ]
        texts, ends = zip(*pairs, strict=True)
        token_bytes = material.tokenizer.token_bytes()
        scored = np.array([token_bytes[end].sum() for end in ends])
        return partial(_measure, items, texts, ends, scored)


def _measure(
    items: list[Item],
    texts: list[Text],
    ends: list[np.ndarray],
    scored: np.ndarray,
    scorer: Scorer,
) -> Figures:
    nats = scorer.likelihoods(texts, ends).nats
    sizes = n_bytes([choice for item in items for choice in item.choices])
    cuts = np.cumsum([len(item.choices) for item in items])[:-1]
    answers = [item.answer for item in items]
    own, size, paid = np.split(nats, cuts), np.split(sizes, cuts), np.split(scored, cuts)
    right = np.array([_is_best(of, i) for of, i in zip(own, answers, strict=True)], float)
    per_byte = [of / np.maximum(1, n) for of, n in zip(own, size, strict=True)]
    by_byte = np.array([_is_best(of, i) for of, i in zip(per_byte, answers, strict=True)], float)
    cost = sum(-of[i] for of, i in zip(own, answers, strict=True))
    taken = sum(n[i] for n, i in zip(paid, answers, strict=True))
    asked = np.ones(len(items))
    return {
        "accuracy": proportion(right, asked),
        "accuracy_per_byte": proportion(by_byte, asked),
        "bits_per_byte": float(cost / math.log(2) / max(1, taken)),
        "chance": float(np.mean([1 / len(item.choices) for item in items])),
    }


def _is_best(scores: np.ndarray, answer: int) -> bool:
    """Return whether ``answer`` scores above all others; a tie counts as wrong."""
    return bool((np.delete(scores, answer) < scores[answer]).all())


def _item(row: dict[str, Any], where: str) -> Item:
    context, choices, answer = (row.get(key) for key in ("context", "choices", "answer"))
    if not isinstance(context, str):
        raise UserError(f"{where}: context is {shown(context)}; expected text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise UserError(f"{where}: choices is {shown(choices)}; expected two texts or more")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise UserError(f"{where}: choices is {shown(choices)}; expected texts, none of them empty")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(
            f"{where}: answer is {shown(answer)}; expected 0 to {len(choices) - 1}, the number of "
            "the right choice"
        )
    return Item(context, choices, answer)
