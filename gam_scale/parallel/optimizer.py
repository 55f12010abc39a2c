"""AdamW with decay groups."""

import torch
from torch import nn

from gam_scale.config import RunConfig
from gam_scale.model.lm import outline


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW in its fused form, with weight decay on the parameters that ``train.decay`` says."""
    train = config.train
    parameters = list(model.parameters())
    # Shapes from the outline: an engine may have flattened the parameters. Mamba's decay rates are
    # a matrix in shape only: pulling log A to 0 would erase their spread.
    decays = [
        train.decay == "all" or (p.dim() >= 2 and not name.endswith("A_log"))
        for name, p in outline(config.model).named_parameters()
    ]
    groups = [
        {
            "params": [p for p, d in zip(parameters, decays, strict=True) if d],
            "weight_decay": train.weight_decay,
        },
        {
            "params": [p for p, d in zip(parameters, decays, strict=True) if not d],
            "weight_decay": 0.0,
        },
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=True,
    )
