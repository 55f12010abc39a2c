"""Jobs for the drills: slurm/gam_1b.sh, submitted as a user would, but with a small model."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from slurm.cluster import Cluster, wait_until

from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import Resume, goodput

ROOT = Path(__file__).resolve().parents[2]
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")
PATIENCE = 300.0
SIZE = (
    "data.seq_len=48 model.d_model=32 model.n_layers=1 model.vocab_size=320 model.memory.n_heads=2 "
    "train.steps=160 train.global_batch_size=4 train.micro_batch_size=2 train.warmup_steps=3 "
    "train.precision=fp32 train.compile=off train.spike_ratio=0 parallel.shard_ranks=0 "
    "parallel.device=cpu eval.every_steps=0 eval.max_tokens=200 eval.batch_size=2 "
    "checkpoint.every_steps=30 log.every_steps=1 log.wandb=off log.tensorboard=false"
)


class Job:
    """One submitted run: what Slurm says of it and what its run directory holds."""

    def __init__(self, cluster: Cluster, job_id: str, run: Path, output: Path) -> None:
        self.cluster, self.id, self.run, self.output = cluster, job_id, run, output

    @property
    def state(self) -> str:
        """The job's state in Slurm's terms, such as RUNNING."""
        return self.cluster.job(self.id)["JobState"]

    @property
    def restarts(self) -> int:
        """How often Slurm has restarted it."""
        return int(self.cluster.job(self.id)["Restarts"])

    @property
    def nodes(self) -> list[str]:
        """The nodes it runs on, the batch node first."""
        text = self.cluster.job(self.id)["NodeList"]
        return self.cluster.run("scontrol", "show", "hostnames", text).split()

    @property
    def cores(self) -> int:
        """The cores that srun has given all its ranks together; only while they run."""
        text = self.cluster.run("scontrol", "-o", "show", "step", f"{self.id}.0")
        return int(re.search(r"\bCPUs=(\d+)", text).group(1))

    @property
    def started(self) -> dict[str, int]:
        """The ``total`` of restarts, and the ``step`` of the checkpoint the last one began from.

        Both are -1 before the first start.
        """
        path = self.run / "restarts.json"
        return json.loads(path.read_text()) if path.exists() else {"total": -1, "step": -1}

    def losses(self) -> dict[int, float]:
        """Return the logged losses by step."""
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    def resumes(self) -> list[Resume]:
        """Return the run's interruptions, from its directory; check that each of them took time."""
        found = goodput(RunDir(self.run))
        assert 0 < found.step_seconds < found.wall_seconds, found
        assert found.starts == self.started["total"] + 1 and found.share < 1, found
        assert all(0 < resume.seconds < found.wall_seconds for resume in found.resumes), found
        return found.resumes

    def wait_for_step(self, step: int) -> None:
        """Wait until it has trained ``step`` steps."""
        self.wait(lambda: max(self.losses(), default=0) >= step, f"step {step}")

    def finish(self) -> str:
        """Wait until it has ended and return the state it ended in."""
        # Each check starts a client of Slurm: a tenth of a core over the minutes of waiting.
        self.wait(lambda: self.state in ENDED, "the end of the job", every=0.5)
        return self.state

    def wait(self, true: Callable[[], object], what: str, every: float = 0.1) -> None:
        """Wait until ``true()`` is true; if it never is, fail with the job's own output."""
        try:
            wait_until(true, PATIENCE, what, every)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def said(self) -> str:
        """Return the job's state and the last lines of its output, its ranks and the daemons."""
        text = self.output.read_text() if self.output.exists() else "(no output)"
        text = "\n".join(text.splitlines()[-30:])
        for log in sorted(self.run.glob("jobs/*/rank*.log")):
            text += f"\n{log.name}:\n" + "\n".join(log.read_text().splitlines()[-12:])
        return f"job {self.id} is {self.state}\n{text}\n{self.cluster.logs()}"


def submit(
    cluster: Cluster,
    data: Path,
    folder: Path,
    *options: str,
    settings: str = "",
    nodes: int = 2,
    script: str = "gam_1b.sh",
    env: dict[str, str] | None = None,
) -> Job:
    """Submit slurm/SCRIPT with one rank on each of ``nodes`` nodes; its run is in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    run, output = folder / "run", folder / "out.txt"
    sets = json.dumps([{"path": str(data)}], separators=(",", ":"))
    words = [*SIZE.split(), f"data.sets={sets}", f"log.run_dir={run}", *settings.split()]
    job_id = cluster.run(
        "sbatch",
        "--parsable",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        "--gpus-per-node=1",
        "--cpus-per-task=2",
        "--exclusive",
        f"--output={output}",
        *options,
        ROOT / "slurm" / script,
        env={
            "GAM_ARGS": " ".join(f"--set {word}" for word in words),
            "GAM_ROOT": str(ROOT),
            "OMP_NUM_THREADS": "1",
            # As torchrun, say, leaves them where sbatch is called: the job's ranks ignore them.
            "RANK": "0",
            "WORLD_SIZE": "1",
        }
        | (env or {}),
    )
    return Job(cluster, job_id, run, output)


def end_all(cluster: Cluster) -> None:
    """Cancel what is left of earlier jobs and wait until every node is free."""
    cluster.run("scancel", "--user=root")
    deadline = time.monotonic() + 60
    while cluster.idle() != set(cluster.nodes) and time.monotonic() < deadline:
        # Slurm drains a node whose job step did not end, such as one that waits for a frozen node.
        for node in cluster.drained():
            cluster.resume(node)
        time.sleep(0.2)
