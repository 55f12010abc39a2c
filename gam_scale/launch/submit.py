"""Submitting runs through submitit: to Slurm if there is one, else on this machine."""

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path

import submitit

from gam_scale.config import load_config
from gam_scale.config.rules import check_ranks
from gam_scale.errors import UserError
from gam_scale.files import append_regular, write_json
from gam_scale.launch.job import RankJob
from gam_scale.launch.status import LaunchNote, ask_slurm
from gam_scale.launch.words import in_one_line, sbatch_options, shell_lines
from gam_scale.process import Process

SIGNAL_DELAY_S = 300
"""Seconds before the time limit at which a job is told to save; Slurm's signals come up to a minute
early or late."""


@dataclass(frozen=True)
class Request:
    """What to run, and on which resources."""

    configs: list[str]
    """Paths of config files, a job each; several become a Slurm array."""
    overrides: list[str]
    nodes: int
    gpus_per_node: int
    """Ranks per node; on CPU clusters too."""
    minutes: int
    cluster: str
    """``slurm`` or ``local``."""
    fresh: bool = False
    partition: str = ""
    """Slurm's partition; empty: SBATCH_PARTITION, or the cluster's default."""
    cpus_per_task: int = 8
    """Cores of each rank, on Slurm."""
    then: list[list[str]] = field(default_factory=list)
    """For each of ``configs``, configs of runs that its job trains after it; empty: none."""

    def jobs(self) -> list[list[str]]:
        """Return the configs of each job, in the order in which the job trains them."""
        further = self.then or [[] for _ in self.configs]
        return [[one, *rest] for one, rest in zip(self.configs, further, strict=True)]


def find_cluster() -> tuple[str, str]:
    """Return ``slurm`` if a controller answers, else ``local``, and the reason."""
    if shutil.which("sbatch") is None:
        return "local", "no sbatch here"
    if "UP" not in (ask_slurm("scontrol", "ping") or ""):
        return "local", "sbatch is here but no Slurm controller answers"
    return "slurm", "a Slurm controller answers"


def run_dirs(request: Request) -> list[Path]:
    """Return the run directory of each config, those of ``then`` too, and check the configs.

    Raises:
        UserError: a config is wrong, or wrong for that many ranks; a name cannot be in a job
            script; two configs share a run directory; or there are too many nodes.
    """
    if request.cluster == "local" and request.nodes > 1:
        raise UserError(f"--nodes is {request.nodes} without Slurm; expected 1 on this machine")
    config_of: dict[Path, str] = {}
    for config in chain(*request.jobs()):
        in_one_line(config, "the config's name")
        settings = load_config(config, request.overrides)
        check_ranks(settings, request.nodes * request.gpus_per_node)
        folder = Path(settings.log.run_dir).absolute()
        in_one_line(str(folder), "log.run_dir")
        if folder in config_of:
            raise UserError(
                f"{config} and {config_of[folder]} both have log.run_dir {folder}; expected a run "
                "directory of its own for each"
            )
        config_of[folder] = config
    return list(config_of)


def parameters(request: Request, name: str) -> dict[str, object]:
    """Return submitit's parameters of the job; settings of slurm/site.sh come from the environment.

    sbatch itself reads SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS and the like (set by
    `. slurm/site.sh`). SBATCH_TIMELIMIT wins over ``minutes``.
    """
    on_cpu = load_config(request.configs[0], request.overrides).parallel.device == "cpu"
    both: dict[str, object] = {
        "timeout_min": request.minutes,
        "tasks_per_node": request.gpus_per_node,
        # Ranks that are told to compute on CPUs need no GPUs.
        "gpus_per_node": 0 if on_cpu else request.gpus_per_node,
        "stderr_to_stdout": True,  # one log per rank
    }
    if request.cluster == "local":
        return both | {"nodes": 1}
    if on_cpu:
        del both["gpus_per_node"]
    setup = shell_lines(os.environ.get("GAM_MODULES", ""), "GAM_MODULES")
    # A job requeued on fewer nodes still has the old count of tasks in its environment, and srun
    # would take that.
    tasks = "$((SLURM_JOB_NUM_NODES * SLURM_NTASKS_PER_NODE))"
    setup.append(f"export SLURM_NTASKS={tasks} SLURM_NPROCS={tasks}")
    # srun does not take over sbatch's --cpus-per-task; without this every rank has one core.
    setup.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")
    setup.append('export GAM_SCRATCH="${GAM_SCRATCH:-${TMPDIR:-/tmp}}"')
    return both | {
        "name": name,
        "nodes": request.nodes,
        "cpus_per_task": request.cpus_per_task,
        "slurm_signal_delay_s": min(SIGNAL_DELAY_S, request.minutes * 60 // 2),
        "slurm_setup": setup,
        # Surviving ranks get time to name the rank that died; see slurm/common.sh.
        "slurm_srun_args": ["--kill-on-bad-exit=0", "--wait=180", *_srun_options()],
        "slurm_additional_parameters": site_options(request.partition),
    }


def _srun_options() -> list[str]:
    """Return the options in GAM_SRUN, split at spaces as slurm/common.sh does.

    Raises:
        UserError: the site's jobs are to run in a container. A rank in one has no client of Slurm,
            by which the ranks of these jobs are requeued.
    """
    options = in_one_line(os.environ.get("GAM_SRUN", ""), "GAM_SRUN").split()
    container = [option for option in options if option.startswith("--container")]
    if container or os.environ.get("GAM_CONTAINER"):
        raise UserError(
            "GAM_CONTAINER or GAM_SRUN names a container, which tools/launch.py's jobs cannot be "
            "in; expected neither here, or a job script of slurm/"
        )
    return options


def site_options(partition: str) -> dict[str, object]:
    """Return further sbatch options of every job: requeueing, partition, those of GAM_SBATCH."""
    options: dict[str, object] = {"requeue": True}
    if partition:
        options["partition"] = in_one_line(partition, "--partition")
    return options | sbatch_options(os.environ.get("GAM_SBATCH", ""))


def jobs_of(request: Request, folders: Sequence[Path]) -> list[RankJob]:
    """Return the object that each job calls; local ranks meet at a port that is free now.

    Args:
        request: what to run.
        folders: its :func:`run_dirs`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
    remaining = map(str, folders)
    jobs = []
    for configs in request.jobs():
        first, *then = (str(Path(config).absolute()) for config in configs)
        runs = list(islice(remaining, len(configs)))
        jobs.append(RankJob(first, request.overrides, request.fresh, port, gpus, then, runs))
    return jobs


class _Renderer(submitit.SlurmExecutor):
    """Renders job scripts, also on machines without Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Return a number above 0, which means that this executor is usable here."""
        return 1


def render(request: Request) -> str:
    """Return the sbatch script that :func:`submit` would hand to Slurm, which need not be here."""
    asked = parameters(request, Path(request.configs[0]).stem)
    own = {key: value for key, value in asked.items() if key.startswith("slurm_")}
    made = _Renderer(run_dirs(request)[0] / "jobs")
    made.update_parameters(
        **made._convert_parameters({k: v for k, v in asked.items() if k not in own}),
        **{key.removeprefix("slurm_"): value for key, value in own.items()},
    )
    if len(request.configs) > 1:
        made.parameters["map_count"] = len(request.configs)
    return made._make_submission_file_text(made._submitit_command_str, "")


@contextmanager
def _own_streams(folder: Path) -> Iterator[None]:
    """Have processes started inside write to ``folder/controller.log`` and read nothing.

    submitit's local controller inherits this process's streams, and would hold a pipe (``| tee``)
    open until the job ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (0, 1, 2)]
    try:
        with open(os.devnull) as nothing, append_regular(folder / "controller.log") as file:
            for number, stream in enumerate((nothing.fileno(), file.fileno(), file.fileno())):
                os.dup2(stream, number)
        yield
    finally:
        for number, was in zip((0, 1, 2), kept, strict=True):
            os.dup2(was, number)
            os.close(was)


def submit(request: Request) -> list[submitit.Job[None]]:
    """Submit every run and note its job in its directory's ``jobs/launched.json``."""
    folders = run_dirs(request)
    made = submitit.AutoExecutor(folders[0] / "jobs", cluster=request.cluster)
    made.update_parameters(**parameters(request, Path(request.configs[0]).stem))
    if len(request.configs) == 1:
        with _own_streams(folders[0] / "jobs") if request.cluster == "local" else nullcontext():
            jobs = [made.submit(jobs_of(request, folders)[0])]
    elif request.cluster == "slurm":
        with made.batch():
            jobs = [made.submit(job) for job in jobs_of(request, folders)]
    else:  # one machine can run them one after the other; submitit would start all at once
        raise UserError(
            "--array without Slurm would start every run at once; expected Slurm, or "
            "one --config after the other"
        )
    remaining = iter(folders)
    for job, configs in zip(jobs, request.jobs(), strict=True):
        process = Process.of(int(job.job_id)) if request.cluster == "local" else None
        note = LaunchNote(job.job_id, request.cluster, str(job.paths.stdout), process)
        for folder in islice(remaining, len(configs)):
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            write_json(folder / "jobs" / "launched.json", asdict(note))
    return jobs
