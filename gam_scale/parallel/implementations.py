"""Choose each layer's implementation: all ranks decide together, before they compile."""

import logging

import torch

from gam_scale.config import RunConfig
from gam_scale.kernels.choice import PORTABLE, Choice, HasKernels, Trial, choose
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.world import World

logger = logging.getLogger("gam_scale")


def choose_implementations(model: LanguageModel, config: RunConfig, world: World) -> None:
    """Set every layer's implementation and the precision of its matrix products.

    All ranks call this together, on a model with or without its parameters. On GPUs kernels are
    compiled, which can take minutes the first time (docs/gpu.md). The log says what is tried, which
    implementation was chosen, and why no better one.
    """
    for module in model.modules():
        if isinstance(module, HasKernels):
            module.fp32_matmul = config.train.fp32_matmul
    if world.device.type != "cuda":
        return  # all kernels are for GPUs
    slow = [layer.slow_on_gpu(config.train.precision) for layer in config.model.stack()]
    for note in dict.fromkeys(filter(None, slow if world.is_main else [])):
        logger.warning(note)
    chosen: dict[tuple[type, object], Choice] = {}
    for module in model.modules():
        if not isinstance(module, HasKernels):
            continue
        trials = module.trials(config.parallel.context)
        # Layers of one type that would be tried on the same sizes share a choice.
        kind = type(module), tuple(x.shape for trial in trials for x in trial.inputs.values())
        if kind not in chosen:
            tells = world.is_main and trials
            if tells:
                names = " and ".join(trials[0].kernels)
                logger.info(
                    "trying %s for %s, whose kernels are compiled first",
                    names,
                    type(module).__name__,
                )
            chosen[kind] = _choice(trials, config, world)
            if tells:
                _log(type(module), chosen[kind])
        module.implementation = chosen[kind].implementation


def _choice(trials: list[Trial], config: RunConfig, world: World) -> Choice:
    return choose(
        trials,
        world.device,
        torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
        config.train.fp32_matmul,
        lambda here: not world.any(not here),
    )


def _log(kind: type, choice: Choice) -> None:
    form = "its portable form" if choice.implementation == PORTABLE else choice.implementation
    why = f" ({'; '.join(choice.reasons)})" if choice.reasons else ""
    logger.info("%s runs in %s%s", kind.__name__, form, why)
