"""Build a ready strategy from a config, in one fixed order of steps."""

import importlib.util

from gam_scale.config import RunConfig
from gam_scale.config.axes import Axes
from gam_scale.data.stream import micro_batch_rows
from gam_scale.errors import UserError
from gam_scale.model.carry import Carry
from gam_scale.model.init import initial_values
from gam_scale.model.lm import outline
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.context import SequenceContext
from gam_scale.parallel.implementations import choose_implementations
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World


def check_engine(engine: str) -> None:
    """Refuse an engine whose package is not installed, before anything is made for it."""
    if engine == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "parallel.engine is deepspeed, which is not installed (setup.cfg has it for Linux "
            "alone); expected parallel.engine=torch or fsdp here"
        )


def build_strategy(config: RunConfig, world: World, *, compiled: bool) -> Strategy:
    """Build the strategy: blocks, engine and optimizer, with parameters left uninitialised.

    :func:`initialise` sets the parameters.

    Args:
        config: complete; ``model.vocab_size`` resolved.
        world: the job's ranks, arranged by ``config.parallel``.
        compiled: run each block through torch.compile.
    """
    axes = world.axes
    assert axes == Axes.of(config.parallel, world.world_size), "World.arranged comes first"
    strategy = _engine(config, world, compiled=compiled)
    strategy.module.z_loss = config.train.z_loss
    if axes.context > 1:
        strategy.module.context = SequenceContext(world)
    if config.data.carry_state:
        rows = config.train.global_batch_size // axes.readers
        strategy.carry = Carry(micro_batch_rows(rows, config.train, axes.readers))
    return strategy


def _engine(config: RunConfig, world: World, *, compiled: bool) -> Strategy:
    if config.parallel.engine == "deepspeed":
        from gam_scale.parallel.zero import DeepSpeedStrategy  # imports take seconds

        return DeepSpeedStrategy(config, world, compiled=compiled)
    model = outline(config.model)
    choose_implementations(model, config, world)
    compilation = prepare_blocks(
        model,
        config.train.recompute,
        compiled=compiled,
        may_fail=config.train.compile == "auto",
    )
    if config.parallel.engine == "fsdp":
        from gam_scale.parallel.fsdp import FSDPStrategy

        strategy: Strategy = FSDPStrategy(model, world, config)
    else:
        model.to_empty(device=world.device)
        optimizer = build_optimizer(model, config)
        strategy = PlainStrategy(model, optimizer, world, config.train.precision)
    strategy.compilation = compilation
    return strategy


def initialise(strategy: Strategy, config: RunConfig) -> None:
    """Set a new strategy's initial weights, the same for every engine and number of ranks."""
    values = initial_values(outline(config.model), config.model, config.train.seed)
    strategy.fill(values)
