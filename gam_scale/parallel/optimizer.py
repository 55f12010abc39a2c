"""AdamW with decay groups."""

import torch
from torch import nn

from gam_scale.config import RunConfig
from gam_scale.model.lm import outline
from gam_scale.model.policy import policies


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW in its fused form: a group for each weight decay and learning rate of the policies.

    A group's ``lr_multiplier`` is of the run's learning rate.
    """
    train = config.train
    # From the outline, which knows their policies: an engine may have flattened the parameters.
    of_names = [policy for _, policy in policies(outline(config.model))]
    decaying = {"matrices": {"always"}, "all": {"always", "all"}}[train.decay]
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter, policy in zip(model.parameters(), of_names, strict=True):
        groups.setdefault((policy.decay in decaying, policy.lr), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": train.weight_decay if decays else 0.0,
                "lr": train.lr * multiplier,
                "lr_multiplier": multiplier,
            }
            for (decays, multiplier), parameters in sorted(
                groups.items(), key=lambda group: (not group[0][0], group[0][1])
            )
        ],
        lr=train.lr,
        betas=(train.beta1, train.beta2),
        eps=train.eps,
        fused=True,
    )
