"""The stages of a run: the log says where each begins, and each line which one it belongs to."""

import logging
from typing import Any

from gam_scale.config.stages import Stage
from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")


class Stages(Hook):
    """Reports the stages of a run that has ``train.stages``, and does nothing in other runs."""

    def start(self, loop: Loop) -> None:
        """Begin with no stage logged."""
        self._told: Stage | None = None

    def before_batch(self, loop: Loop) -> None:
        """Log the stage before its first step, and before the first step of a start."""
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
        """Add the last step's stage, counted from 1, its length of sequences and its batch size."""
        if loop.config.train.stages:
            stage = loop.batches.stage(loop.state.step - 1)
            figures |= {
                "stage": loop.batches.stages.index(stage) + 1,
                "seq_len": stage.seq_len,
                "batch": stage.global_batch_size,
            }
