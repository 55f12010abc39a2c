"""Associative recall: its settings, its texts, and how much of them a model recalls."""

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
from gam_scale.evaluate.mqar import Recall, recall_batch
from gam_scale.evaluate.state_size import StateSize
from gam_scale.model.lm import LanguageModel
from gam_scale.model.loss import IGNORE
from gam_scale.model.parts import MIXERS
from gam_scale.strict import apply_overrides, from_dict, option

KINDS = tuple(MIXERS)


@dataclass
class RecallConfig:
    """The task and how it is learned; ``--set recall.KEY=VALUE``."""

    vocab_size: int = option(256, "ids: keys are in the first half, values in the second", above=3)
    train: list[list[int]] = option(
        [[16, 2], [32, 4], [64, 8]], "[tokens, pairs] trained on; a step draws one of them"
    )
    test: list[list[int]] = option(
        [[16, 2], [32, 4], [64, 8], [128, 8], [128, 16]], "[tokens, pairs] tested on"
    )
    filler: Literal["random", "blank"] = option(
        "random", "what stands between queries: random ids, as in Zoology, or id 0, which is easier"
    )
    steps: int = option(2000, "optimizer steps at most", at_least=1)
    batch_size: int = option(64, "texts per step", at_least=1)
    lrs: list[float] = option(
        [3e-3], "peak learning rates: one model each, of which the best is reported", above=0
    )
    test_texts: int = option(500, "held-out texts of each difficulty", at_least=1)
    stop_at: float = option(
        0.999, "accuracy on the hardest texts trained on that ends training", above=0
    )
    check_every: int = option(100, "steps between looks at that accuracy", at_least=1)
    seed: int = option(0, "seeds weights and texts", at_least=0)


_SMALL = {
    "d_model": 64,
    "n_layers": 2,
    "dropout": 0.0,
    "position": "none",  # order comes from convolutions, and lengths not trained on are tested
    "gam": {"n_slots": 64},
    "memory": {"n_heads": 1, "n_slots": 32, "top_k": 8},
    "attention": {"n_heads": 2},
    "mamba": {"expand": 2},
}
PRESETS: dict[str, dict[str, Any]] = {
    # States: 8,448 numbers in two layers of slot or delta, 4,864 of mamba, 4,352 of phase, which
    # holds no more at this width; a scan has one per channel.
    "cpu": {
        "recall": {},
        "model": _SMALL,
    },
    # zoology/experiments/arxiv24_based_figure2/configs.py: lengths, pairs, their shares (100,000
    # texts of 4 pairs to 20,000 of each other kind), 32 epochs at batch 256, learning rates.
    # States: 16,896 numbers in slot and delta, 17,920 in mamba, 8,704 in phase.
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
}


@dataclass(frozen=True)
class RecallScore:
    """Accuracy on the held-out texts of one difficulty."""

    task: Recall
    accuracy: Interval
    texts: int


@dataclass(frozen=True)
class RecallResult:
    """What one memory learned."""

    kind: str
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
    """The preset's task and model with this kind of layer; overrides have the last word.

    An override may be for one kind only, ``delta:model.memory.n_heads=1``, so that states can be
    made equal.

    Raises:
        UserError: an unknown kind, a setting that is none, or settings that do not go together.
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
    longest = max(task.seq_len for task in tasks_of(recall, recall.train + recall.test))
    data["model"] |= {"vocab_size": recall.vocab_size, "max_seq_len": longest}
    model = from_dict(ModelConfig, data["model"], "model")
    model.check()
    return recall, model


@torch.no_grad()
def right_answers(
    net: LanguageModel, recall: RecallConfig, task: Recall, n: int, seed: int
) -> np.ndarray:
    """Queries that each of ``n`` texts answers right, (n,) float64: its likeliest id is the value.

    Logits are computed at the queries only.
    """
    batch, rows = texts_of(recall, task, n, seed), recall.batch_size
    weight = net.eval().head_weight
    right: list[Tensor] = []
    for tokens, targets in zip(batch.tokens.split(rows), batch.targets.split(rows), strict=True):
        asked = targets != IGNORE
        hidden = net.hidden(tokens.to(weight.device))[asked.to(weight.device)]
        answers = torch.cat([(h @ weight.T).argmax(-1) for h in hidden.split(1024)]).cpu()
        right.append((answers == targets[asked]).view(len(tokens), task.pairs).sum(1))
    return torch.cat(right).double().numpy()


def texts_of(recall: RecallConfig, task: Recall, n: int, seed: int) -> Batch:
    """``n`` texts of the task."""
    return recall_batch(task, n, seed, blank=recall.filler == "blank")


def tasks_of(recall: RecallConfig, rows: Sequence[Sequence[int]]) -> list[Recall]:
    """The tasks that ``rows`` of [tokens, pairs] stand for."""
    if not rows or any(len(row) != 2 for row in rows):
        raise UserError(
            "recall.train and recall.test list [tokens, pairs]; expected such as [128,8]"
        )
    return [Recall(seq_len, pairs, recall.vocab_size) for seq_len, pairs in rows]


def _for_kind(kind: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that hold for this kind, their prefix taken off."""
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
