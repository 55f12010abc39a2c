"""From a config to a ready strategy, in one fixed order."""

import torch
from torch import nn

from gam_scale.config import RunConfig
from gam_scale.model.lm import build_model
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World


def build_strategy(config: RunConfig, world: World, *, compiled: bool) -> Strategy:
    """Model, per-block compilation, optimizer, engine.

    Args:
        config: complete; ``model.vocab_size`` resolved.
        world: the job's ranks.
        compiled: run each block through torch.compile.
    """
    model = build_model(config.model, config.train.seed, world.device)
    prepare_blocks(model, config.train.recompute, compiled=compiled)
    optimizer = build_optimizer(model, config)
    if config.parallel.engine == "deepspeed":
        from gam_scale.parallel.zero import DeepSpeedStrategy

        return DeepSpeedStrategy(model, optimizer, world, config)
    return PlainStrategy(model, optimizer, world, config.train.precision)


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """AdamW in its fused form, with weight decay on the parameters that ``train.decay`` says."""
    train = config.train
    parameters = list(model.parameters())
    # Mamba's decay rates are a matrix in shape only: pulling log A to 0 would erase their spread.
    decays = [
        train.decay == "all" or (p.dim() >= 2 and not name.endswith("A_log"))
        for name, p in model.named_parameters()
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
