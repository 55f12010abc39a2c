"""The loss of every token, without holding the logits of all tokens at once."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.data.packing import Batch
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.loss import IGNORE, capped, chunk_rows


class Predictor(Protocol):
    """What these functions need of a model: hidden states, and the head that makes logits of them.

    ``hidden(tokens, layout)`` maps ids (B, T) to (B, T, d).
    """

    @property
    def head_weight(self) -> Tensor:
        """Weight of the output head, (vocab_size, d)."""

    @property
    def logit_softcap(self) -> float:
        """Cap of the logits; 0: none."""

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor: ...


@torch.no_grad()
def token_losses(model: Predictor, batch: Batch) -> Tensor:
    """Return each target's cross-entropy in nats, (B, T) float32 on the CPU; 0 without a target.

    Logits exist for a few tokens at a time (:func:`gam_scale.model.loss.chunk_rows`), so a long
    text needs only the memory that the model itself needs.
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
    """Return log-probabilities of the token after each row, (B, T) -> (B, vocab_size) on CPU."""
    weight = model.head_weight
    hidden = model.hidden(tokens.to(weight.device))[:, -1]
    logits = capped(F.linear(hidden, weight), model.logit_softcap)
    return torch.log_softmax(logits.float(), dim=-1).cpu()
