"""AdamW with decay groups."""

import torch
from torch import nn

from gam_scale.config import RunConfig
from gam_scale.model.lm import outline
from gam_scale.model.policy import decays


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW in its fused form, with weight decay on the parameters that ``train.decay`` says."""
    train = config.train
    parameters = list(model.parameters())
    # From the outline, which knows their shapes: an engine may have flattened the parameters.
    decaying = {"matrices": {"always"}, "all": {"always", "all"}}[train.decay]
    does = [decay in decaying for _, decay in decays(outline(config.model))]
    groups = [
        {
            "params": [p for p, d in zip(parameters, does, strict=True) if d == decay],
            "weight_decay": train.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=True,
    )
