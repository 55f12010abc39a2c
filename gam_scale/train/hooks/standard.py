"""The hooks that every run has, in the order in which each event reaches them."""

import logging
from functools import partial

import numpy as np

from gam_scale.config.stages import stage_number, stages_of
from gam_scale.hardware.peak import device_peak_flops
from gam_scale.model.lm import outline
from gam_scale.train.hooks.annealing import Annealing
from gam_scale.train.hooks.carrying import Carrying
from gam_scale.train.hooks.divergence import NotedDivergence
from gam_scale.train.hooks.evaluation import Evaluation
from gam_scale.train.hooks.first_step import FirstStep
from gam_scale.train.hooks.garbage import Garbage
from gam_scale.train.hooks.goodput import Goodput
from gam_scale.train.hooks.health import RankPace
from gam_scale.train.hooks.layers import LayerStatistics
from gam_scale.train.hooks.lines import Lines
from gam_scale.train.hooks.mirroring import Mirroring
from gam_scale.train.hooks.noise_scale import NoiseScale
from gam_scale.train.hooks.out_of_memory import OutOfMemory
from gam_scale.train.hooks.profile import StepProfile
from gam_scale.train.hooks.progress import Progress
from gam_scale.train.hooks.sampling import Samples
from gam_scale.train.hooks.saving import Saving
from gam_scale.train.hooks.skips import CountedSkips
from gam_scale.train.hooks.spikes import Spikes
from gam_scale.train.hooks.stages import Stages
from gam_scale.train.hooks.stopping import Stopping
from gam_scale.train.hooks.tasks import Tasks
from gam_scale.train.loop import Hook
from gam_scale.train.metrics import StepMetrics, Throughput
from gam_scale.train.session import Session
from gam_scale.train.sinks import MetricLog

logger = logging.getLogger("gam_scale")


def standard_hooks(session: Session, log: MetricLog) -> list[Hook]:
    """Return the hooks of one loop, whose lines go to ``log``.

    Between steps the evaluation comes before the line, which shows its loss, and the line comes
    before the checkpoint, whose state must count the line as logged.
    """
    run, data, stop = session.run, session.data, session.stop
    profile = run.logs / "profile"
    lines = Lines(partial(_metrics, session), log, run.check_lock)
    return [
        *session.hooks,
        Progress(session.watchdog),
        OutOfMemory(profile),
        StepProfile(profile),
        Garbage(),
        Stopping(stop),
        Annealing(run),
        Spikes(),
        Carrying(),
        FirstStep(lines),
        NotedDivergence(run),
        Goodput(run),
        RankPace(run.ranks),
        LayerStatistics(log, run.check_lock),
        NoiseScale(),
        Samples(data.tokenizer, log, run.check_lock),
        Tasks(session.tasks, data.tokenizer.vocab_size, stop),
        Evaluation(data, stop),
        lines,
        CountedSkips(lines),
        Saving(session.saver),
        *([Mirroring(session.saver.mirror)] if session.saver.mirror is not None else []),
        Stages(),
    ]


def _metrics(session: Session, clock: Throughput) -> StepMetrics:
    config, world, train = session.config, session.strategy.world, session.data.train
    peak = device_peak_flops(world.device, config.train.precision)
    logger.info("peak %.0f GFLOP/s per rank (%s)", peak.flops / 1e9, peak.source)
    tokens, text_bytes = np.sum([split.info.learned for split in train], axis=0).tolist()
    answers_alone = any(split.info.answers for split in train)
    stages, model = stages_of(config), outline(config.model)
    flops = [3.0 * model.flops_per_token(stage.seq_len) for stage in stages]
    return StepMetrics(
        world,
        clock,
        flops_per_token=lambda step: flops[stage_number(stages, step - 1)],
        tokens_per_step=(
            (lambda step: stages[stage_number(stages, step - 1)].tokens_per_step)
            if answers_alone
            else None
        ),
        peak_flops=peak.flops * world.world_size,
        bytes_per_token=text_bytes / tokens,
    )
