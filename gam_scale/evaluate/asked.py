"""Evaluate a checkpoint on downstream tasks in the same way as the training loop does."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gam_scale.checkpoint.load import Trained
from gam_scale.evaluate.downstream.task import Figures, Material, make_ready, read_tasks
from gam_scale.evaluate.scorer import Scorer
from gam_scale.evaluate.text import TextSource, documents
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.world import World


def ask_tasks(
    trained: Trained,
    source: TextSource,
    tasks: Mapping[str, Any],
    where: str,
    *,
    seq_len: int,
    batch_size: int,
) -> dict[str, Figures]:
    """Evaluate a model on tasks and return the figures of each task by its name.

    The questions are drawn with the seed of the model's own run.

    Args:
        trained: the model.
        source: the text in which sentences are hidden and last words are looked for.
        tasks: settings of each task by name, as in ``eval.tasks``.
        where: where ``tasks`` comes from, for error messages.
        seq_len: most tokens that the model reads at once.
        batch_size: rows of a forward pass.

    Raises:
        UserError: a task's settings are invalid, or its questions cannot be made.
    """
    material = Material(
        trained.tokenizer, partial(documents, trained, source), seq_len, trained.config.train.seed
    )
    measures = make_ready(read_tasks(tasks, where), material, where)
    world = World(0, 1, 0, 1, trained.model.embedding.weight.device)
    scorer = Scorer(
        partial(logits_at, trained.model),
        trained.tokenizer.vocab_size,
        world,
        seq_len=seq_len,
        batch_size=batch_size,
    )
    return {name: measure(scorer) for name, measure in measures.items()}


@torch.no_grad()
def logits_at(model: LanguageModel, tokens: Tensor, layout: Layout, at: Tensor) -> Tensor:
    """Implement :class:`~gam_scale.evaluate.scorer.Logits` for a model that one process holds."""
    return model(tokens, None, layout, None, at)
