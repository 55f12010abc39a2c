"""Settings, presets, texts and grading for learning a synthetic task, recall above all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gam_scale.config import ModelConfig
from gam_scale.data.packing import Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.state_size import StateSize
from gam_scale.evaluate.tasks.task import Task, task_of
from gam_scale.model.lm import LanguageModel
from gam_scale.model.parts import MIXERS
from gam_scale.strict import apply_overrides, from_dict, option

KINDS = tuple(MIXERS)


@dataclass
class RecallConfig:
    """The task and how it is learned; ``--set recall.KEY=VALUE`` changes a setting."""

    task: str = option(
        "recall",
        "recall: find values by their keys (MQAR); parity: parity of bits; s3: products of "
        "permutations; s3_swaps: products of swaps (gam_scale/evaluate/tasks has a file for each)",
    )
    vocab_size: int = option(
        256,
        "number of ids; in recall, keys are from the first half and values from the second",
        above=1,
    )
    train: list[list[int]] = option(
        [[16, 2], [32, 4], [64, 8]],
        "sizes to train on, [tokens, pairs] in recall and [tokens] in other tasks; each step draws "
        "one",
    )
    test: list[list[int]] = option(
        [[16, 2], [32, 4], [64, 8], [128, 8], [128, 16]], "sizes to test on, in the same form"
    )
    filler: Literal["random", "blank"] = option(
        "random",
        "recall: what stands between queries; random: random ids, as in Zoology; blank: id 0, "
        "which is easier",
    )
    steps: int = option(2000, "most optimizer steps", at_least=1)
    batch_size: int = option(64, "texts per step", at_least=1)
    lrs: list[float] = option(
        [3e-3],
        "peak learning rates; a model is trained at each, and the best one is reported",
        above=0,
    )
    test_texts: int = option(500, "held-out texts of each size", at_least=1)
    stop_at: float = option(
        0.999,
        "accuracy at which training ends early, on texts of the hardest size trained on",
        above=0,
    )
    check_every: int = option(100, "steps between measurements of that accuracy", at_least=1)
    seed: int = option(0, "seed of weights and texts", at_least=0)


_SMALL = {
    "d_model": 64,
    "n_layers": 2,
    "dropout": 0.0,
    "position": "none",  # convolutions give the order; tests have lengths not trained on
    "gam": {"n_slots": 64},
    "memory": {"n_heads": 1, "n_slots": 32, "top_k": 8},
    "attention": {"n_heads": 2},
    "mamba": {"expand": 2},
}
# Lengths of arXiv 2411.12537: trained on up to 40 tokens, tested on up to 256.
_TRACKED = {"train": [[4], [8], [16], [32], [40]], "test": [[40], [64], [128], [256]]}
PRESETS: dict[str, dict[str, Any]] = {
    # State sizes: two layers of slot, raven, delta or mamba2 hold 8,192 numbers; mamba and phase
    # hold 4,096, the most that phase can hold at this width; a scan holds one per channel.
    "cpu": {
        "recall": {},
        "model": _SMALL,
    },
    # From zoology/experiments/arxiv24_based_figure2/configs.py: lengths, pairs, their shares
    # (100,000 texts of 4 pairs, 20,000 of each other kind), 32 epochs at batch 256, learning rates.
    # State sizes: slot, raven, delta and mamba2 hold 32,768 numbers, mamba and phase 16,384.
    "zoology": {
        "recall": {
            "vocab_size": 8192,
            "train": [*[[64, 4]] * 5, [128, 8], [256, 16], [256, 32], [256, 64]],
            "test": [[64, 4], [64, 8], [64, 16], [128, 32], [256, 64], [512, 128], [1024, 256]],
            "steps": 22_500,
            "batch_size": 256,
            "lrs": [1e-3, 3.2e-3, 1e-2, 3.2e-2],
            "test_texts": 1000,
            "check_every": 500,
        },
        "model": _SMALL
        | {"d_model": 128, "gam": {"n_slots": 128}, "memory": {"n_heads": 1, "n_slots": 64}},
    },
    "parity": {"recall": {"task": "parity", "vocab_size": 2, **_TRACKED}, "model": _SMALL},
    "s3": {"recall": {"task": "s3", "vocab_size": 6, **_TRACKED}, "model": _SMALL},
    "s3_swaps": {"recall": {"task": "s3_swaps", "vocab_size": 6, **_TRACKED}, "model": _SMALL},
}


@dataclass(frozen=True)
class RecallScore:
    """Accuracy on the held-out texts of one difficulty."""

    task: Task
    accuracy: Interval
    texts: int


@dataclass(frozen=True)
class RecallResult:
    """What a model with one kind of memory has learned."""

    kind: str
    """Kind of its memory layers, or the name of a model with several kinds."""
    model: ModelConfig
    parameters: int
    state: StateSize
    scores: list[RecallScore]
    lr: float
    steps: int
    seconds: float
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, accuracy on the hardest texts trained on)"""


def recall_config(
    kind: str, preset: str, overrides: Sequence[str] = ()
) -> tuple[RecallConfig, ModelConfig]:
    """Return a preset's task and model with this kind of layer, changed by ``overrides``.

    An override with a prefix is for one kind only, as ``delta:model.memory.n_heads=1``, so that
    the kinds' states can be made equal.

    Raises:
        UserError: an unknown kind, an unknown setting, or settings that do not go together.
    """
    if kind not in KINDS:
        raise UserError(f"--memories names {kind!r}; expected some of {', '.join(KINDS)}")
    data = {"recall": dict(PRESETS[preset]["recall"]), "model": dict(PRESETS[preset]["model"])}
    data["model"]["layers"] = [*MIXERS[kind].recall_after, kind]
    sets = [*MIXERS[kind].recall.get(preset, ()), *_for_kind(kind, overrides)]
    data = apply_overrides(data, sets)
    if unknown := sorted(data.keys() - {"recall", "model"}):
        raise UserError(f"--set {unknown[0]}... is no setting here; expected recall.* or model.*")
    recall = from_dict(RecallConfig, data["recall"], "recall")
    return recall, model_of(recall, data["model"])


def model_of(recall: RecallConfig, settings: dict[str, Any]) -> ModelConfig:
    """Return the model of these settings, with the task's vocabulary and longest text.

    Raises:
        UserError: settings that do not go together.
    """
    tasks = [*tasks_of(recall, recall.train), *tasks_of(recall, recall.test)]
    longest = max(task.seq_len for task in tasks)
    sizes = {"vocab_size": recall.vocab_size, "max_seq_len": longest}
    model = from_dict(ModelConfig, settings | sizes, "model")
    model.check()
    return model


@torch.no_grad()
def right_answers(
    net: LanguageModel, recall: RecallConfig, task: Task, n: int, seed: int
) -> np.ndarray:
    """Count the graded labels that a model gets right in each of ``n`` texts, (n,) float64.

    An answer is the likeliest id. Logits are computed only where a label is graded.
    """
    batch, rows = texts_of(recall, task, n, seed), recall.batch_size
    weight = net.eval().head_weight
    right: list[Tensor] = []
    for tokens, targets in zip(batch.tokens.split(rows), batch.targets.split(rows), strict=True):
        asked = task.graded(targets)
        hidden = net.hidden(tokens.to(weight.device))[asked.to(weight.device)]
        answers = torch.cat([(h @ weight.T).argmax(-1) for h in hidden.split(1024)]).cpu()
        right.append((answers == targets[asked]).view(len(tokens), task.asked).sum(1))
    return torch.cat(right).double().numpy()


def texts_of(recall: RecallConfig, task: Task, n: int, seed: int) -> Batch:
    """Make ``n`` texts of the task, with the filler of ``recall``."""
    return task.texts(n, seed, blank=recall.filler == "blank")


def tasks_of(recall: RecallConfig, rows: Sequence[Sequence[int]]) -> list[Task]:
    """Return the task of each row; rows are [tokens, pairs], or [tokens].

    Raises:
        UserError: there are no rows, or their texts cannot be made.
    """
    kind = task_of(recall.task)
    if not rows:
        raise UserError("recall.train or recall.test is empty; expected at least one difficulty")
    if recall.filler == "blank" and recall.task != "recall":
        raise UserError(f"recall.filler is blank, but {recall.task} has none; expected random")
    return [kind.of(row, recall.vocab_size) for row in rows]


def _for_kind(kind: str, overrides: Sequence[str]) -> list[str]:
    """Return the overrides that apply to this kind, without their prefix."""
    own = []
    for item in overrides:
        prefix, colon, _ = item.partition("=")[0].partition(":")
        if not colon:
            own.append(item)
        elif prefix not in KINDS:
            raise UserError(f"--set {item!r} is for {prefix!r}; expected one of {', '.join(KINDS)}")
        elif prefix == kind:
            own.append(item[len(prefix) + 1 :])
    return own
