"""Where a stage of the run begins: said in the log, and which one it is in each line."""

import logging
from typing import Any

from gam_scale.config.stages import Stage
from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")


class Stages(Hook):
    """Tells of the stages of a run that has ``train.stages``, and does nothing in others."""

    def start(self, loop: Loop) -> None:
        """None was told of yet."""
        self._told: Stage | None = None

    def before_batch(self, loop: Loop) -> None:
        """Say so, before the first step of one, and of a start."""
        stages, stage = loop.batches.stages, loop.batches.stage(loop.state.step)
        if not loop.config.train.stages or stage == self._told:
            return
        self._told = stage
        others = {one.seq_len for one in stages[: stages.index(stage)]}
        compiles = loop.strategy.compilation.is_on and others and stage.seq_len not in others
        logger.info(
            "stage %d of %d from step %s: %d sequences of %s tokens a step%s",
            stages.index(stage) + 1,
            len(stages),
            f"{stage.first_step + 1:,}",
            stage.global_batch_size,
            f"{stage.seq_len:,}",
            "; blocks are compiled for that length in its first step" * bool(compiles),
        )

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Add the number of the last step's stage, from 1, and the length of its sequences."""
        if loop.config.train.stages:
            stage = loop.batches.stage(loop.state.step - 1)
            figures |= {
                "stage": loop.batches.stages.index(stage) + 1,
                "seq_len": stage.seq_len,
                "batch": stage.global_batch_size,
            }
