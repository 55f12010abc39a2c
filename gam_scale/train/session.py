"""The objects that one start of a run has opened, shared by everything that trains within it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gam_scale.config import RunConfig
from gam_scale.evaluate.downstream.task import Measure
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.watchdog import Watchdog
from gam_scale.run.directory import RunDir
from gam_scale.train.loop import Hook
from gam_scale.train.reading import RunData
from gam_scale.train.saver import Saver
from gam_scale.train.signals import StopRequest


@dataclass(frozen=True)
class Session:
    """One start of a run, from its first step to its last, rollbacks included."""

    run: RunDir
    config: RunConfig
    """Resolved against the data."""
    strategy: Strategy
    data: RunData
    saver: Saver
    stop: StopRequest
    watchdog: Watchdog
    tasks: Mapping[str, Measure]
    """The tasks of ``eval.tasks``, ready to be asked."""
    hooks: Sequence[Hook] = ()
    """The caller's hooks, which each event reaches before the run's own hooks."""
