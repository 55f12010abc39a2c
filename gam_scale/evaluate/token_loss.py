"""The loss of every token, without ever holding the logits of all of them."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.data.packing import Batch
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.loss import IGNORE, capped, chunk_rows


class Predictor(Protocol):
    """What these measurements need of a model: hidden states, and what makes logits of them.

    ``hidden(tokens, layout)`` maps ids (B, T) to (B, T, d).
    """

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, d)."""

    @property
    def logit_softcap(self) -> float:
        """What logits are capped at; 0: they are not."""

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor: ...


@torch.no_grad()
def token_losses(model: Predictor, batch: Batch) -> Tensor:
    """Cross-entropy of each target in nats, (B, T) float32 on the CPU; 0 where there is no target.

    Logits exist for a few tokens at a time (:func:`gam_scale.model.loss.chunk_rows`),
    so the memory that a long text takes is the model's own.
    """
    weight = model.head_weight
    batch = batch.to(weight.device)
    there = batch.targets != IGNORE
    hidden, targets = model.hidden(batch.tokens, batch.layout)[there], batch.targets[there]
    rows = chunk_rows(len(targets), weight.shape[0], weight.device.type)
    losses = [
        F.cross_entropy(capped(linear(h, weight), model.logit_softcap).float(), t, reduction="none")
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    out = torch.zeros(batch.targets.shape, device=weight.device)
    out[there] = torch.cat(losses)
    return out.cpu()


@torch.no_grad()
def last_log_probs(model: Predictor, tokens: Tensor) -> Tensor:
    """Log-probabilities of the token after each row, (B, T) ids -> (B, vocab_size) on the CPU."""
    weight = model.head_weight
    hidden = model.hidden(tokens.to(weight.device))[:, -1]
    logits = capped(F.linear(hidden, weight), model.logit_softcap)
    return torch.log_softmax(logits.float(), dim=-1).cpu()
