"""Plans of a run's stages, each as a run of its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gam_scale.config.stages import Stage, stages_of
from gam_scale.plan.estimate import Estimate
from gam_scale.plan.job import Job
from gam_scale.plan.memory import peak_memory


@dataclass(frozen=True)
class StagePlan:
    """One stage as it runs under an estimate's engine and recomputation."""

    stage: Stage
    estimate: Estimate

    @property
    def seconds(self) -> float:
        """Seconds of all the stage's steps."""
        return self.stage.steps * self.estimate.step_seconds


def stage_jobs(job: Job) -> list[Job]:
    """Return the job of each stage; for a run without ``train.stages`` the job itself."""
    if not job.config.train.stages:
        return [job]
    return [_at(job, stage) for stage in stages_of(job.config)]


def fullest(jobs: Sequence[Job]) -> Job:
    """Return the job that takes most memory under its own engine, since all of them must fit."""
    return max(jobs, key=lambda job: peak_memory(job).total) if len(jobs) > 1 else jobs[0]


def stage_plans(job: Job, chosen: Estimate) -> list[StagePlan]:
    """Plan all stages of ``job`` with the engine and the recomputation of the estimate."""
    parallel, recompute = chosen.job.config.parallel, chosen.job.config.train.recompute
    plans = []
    for stage, own in zip(stages_of(job.config), stage_jobs(job), strict=True):
        train = replace(own.config.train, recompute=recompute)
        config = replace(own.config, parallel=parallel, train=train)
        plans.append(StagePlan(stage, replace(chosen, job=replace(own, config=config))))
    return plans


def _at(job: Job, stage: Stage) -> Job:
    train = {
        "stages": [],
        "steps": stage.steps,
        "global_batch_size": stage.global_batch_size,
        "micro_batch_size": stage.micro_batch_size,
    }
    return job.having(data={"seq_len": stage.seq_len}, train=train)
