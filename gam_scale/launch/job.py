"""One rank of a run that submitit started: the object that its job unpickles and calls."""

import os
import sys
from dataclasses import dataclass, field

import submitit

from gam_scale.cli import exit_status
from gam_scale.launch.requeue import STOPPED, end_job
from gam_scale.launch.starts import Starts
from gam_scale.train.signals import StopRequest

ELSEWHERE = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"),
)
"""Variables that a launcher may have left in the submitting shell (compare slurm/common.sh)."""


@dataclass(frozen=True)
class RankJob:
    """Trains when called; the same object is called again when Slurm starts the job anew.

    If a signal stops the training, the call ends the process instead of returning: submitit would
    write a result to disk, and then take the requeued job for a finished one.
    """

    config: str
    """Path of the run's JSON config."""
    overrides: list[str] = field(default_factory=list)
    fresh: bool = False
    port: int = 0
    """Port at which ranks meet without Slurm, unless the port is taken by then."""
    gpus: str | None = None
    """CUDA_VISIBLE_DEVICES of the submitting shell."""
    then: list[str] = field(default_factory=list)
    """Configs of further runs, trained in this order once the first has finished."""
    runs: list[str] = field(default_factory=list)
    """Directories of all its runs."""

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return the job unchanged: before :meth:`__call__` there is nothing to save."""
        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Train to the end or to a signal; after a signal, have Slurm start the job again, once."""
        stop = StopRequest()  # first of all: submitit's own handlers end the job or do nothing
        try:
            self._train()
        finally:
            stop.close()

    def _train(self) -> None:
        here = submitit.JobEnvironment()
        for name in ELSEWHERE:
            os.environ.pop(name, None)
        if "SLURM_JOB_ID" not in os.environ or here.cluster == "local":
            os.environ |= local_place(here, self.port)
            # submitit's own value names as many GPUs as ranks, even on a machine without any.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if self.gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        # Imported on the rank only: the process that submits needs no engine.
        from gam_scale.parallel.flight import settings
        from gam_scale.train.in_turn import train_in_turn

        prefix = here.paths.folder / f"{here.paths.job_id}_flight_rank_"
        for name, value in settings(str(prefix)).items():
            os.environ.setdefault(name, value)

        on_slurm = here.cluster != "local"
        starts = Starts(here.paths.folder / f"{here.paths.job_id}_unopened", self.runs)
        try:
            configs = [self.config, *self.then]
            finished = train_in_turn(configs, self.overrides, fresh=self.fresh)
        except Exception as error:
            if on_slurm:
                end_job(exit_status(error), starts.unopened())
            raise
        if finished:
            return
        if on_slurm and here.global_rank == 0:
            end_job(STOPPED)
        sys.exit(STOPPED)


def local_place(here: submitit.JobEnvironment, port: int) -> dict[str, str]:
    """Return the variables by which ranks of submitit's local executor find each other."""
    return {
        "RANK": str(here.global_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
