"""One rank of a run that submitit started: what its pickled job calls."""

import os
import sys
from dataclasses import dataclass, field

import submitit

from gam_scale.cli import exit_status
from gam_scale.launch.requeue import STOPPED, end_job
from gam_scale.train.signals import StopRequest

ELSEWHERE = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE"),
)
"""Variables that a launcher may have left where the job was submitted, as in slurm/common.sh."""


@dataclass(frozen=True)
class RankJob:
    """Trains when called; the same object is called again when Slurm starts the job anew.

    It ends its process rather than return where a signal stopped it: a result on disk would make
    submitit take a requeued job for a finished one.
    """

    config: str
    """Path of the run's JSON config."""
    overrides: list[str] = field(default_factory=list)
    fresh: bool = False
    port: int = 0
    """Where ranks meet without Slurm, unless it is taken by then."""
    gpus: str | None = None
    """CUDA_VISIBLE_DEVICES where it was submitted."""
    then: list[str] = field(default_factory=list)
    """Configs of further runs, trained in this order once the first has finished."""

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The job as it was: before :meth:`__call__` nothing was done that a signal could undo."""
        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Train to the end, or to a signal; then have Slurm start the job again, once."""
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
            # submitit's own names as many GPUs as there are ranks, on a machine without any too.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if self.gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        # Imported on the rank only: who submits needs no engine.
        from gam_scale.parallel.flight import settings
        from gam_scale.train.in_turn import train_in_turn

        prefix = here.paths.folder / f"{here.paths.job_id}_flight_rank_"
        for name, value in settings(str(prefix)).items():
            os.environ.setdefault(name, value)

        on_slurm = here.cluster != "local"
        try:
            configs = [self.config, *self.then]
            finished = train_in_turn(configs, self.overrides, fresh=self.fresh)
        except Exception as error:
            if on_slurm:
                end_job(exit_status(error))
            raise
        if finished:
            return
        if on_slurm and here.global_rank == 0:
            end_job(STOPPED)
        sys.exit(STOPPED)


def local_place(here: submitit.JobEnvironment, port: int) -> dict[str, str]:
    """The variables by which ranks of submitit's local executor find each other."""
    return {
        "RANK": str(here.global_rank),
        "WORLD_SIZE": str(here.num_tasks),
        "LOCAL_RANK": str(here.local_rank),
        "LOCAL_WORLD_SIZE": str(here.num_tasks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
