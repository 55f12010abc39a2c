"""tools/launch.py on a real Slurm: submitted, requeued, listed, cancelled."""

import json
import subprocess
import sys

import pytest
from slurm.jobs import ROOT, Job, end_all

pytestmark = pytest.mark.slurm
CORES = ("--cpus-per-task", 2)


@pytest.fixture
def launch(slurm):
    """``launch(words)`` -> output of tools/launch.py, run on the test Slurm."""

    def run(*words) -> str:
        done = subprocess.run(
            [sys.executable, "tools/launch.py", *map(str, words)],
            cwd=ROOT,
            env=slurm.env | {"OMP_NUM_THREADS": "1", "GAM_SBATCH": "mem=1000"},
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    end_all(slurm)


def test_from_submission_to_the_end_through_a_requeue(slurm, launch, tiny, tmp_path):
    run, config = tmp_path / "run", tmp_path / "config.json"
    train = {"steps": 400, "warmup_steps": 3}
    config.write_text(json.dumps(tiny(run, train=train, eval={"every_steps": 0})))
    said = launch(
        "--config", config, "--nodes", 2, "--gpus-per-node", 1, *CORES, "--set=log.every_steps=1"
    )
    assert said.startswith("Slurm: a Slurm controller answers")
    note = json.loads((run / "jobs" / "launched.json").read_text())
    job = Job(slurm, note["job"], run, run / "jobs" / f"{note['job']}_0_log.out")
    job.wait_for_step(20)
    assert job.cores == 4, "a rank does not have the cores that the job was given"
    assert "running" in launch("--status", tmp_path)
    slurm.run("scancel", "--signal=USR2", job.id)  # as submitit has Slurm send before the limit
    job.wait(lambda: job.restarts == 1, "a requeue")
    job.wait(lambda: job.started["total"] == 1, "training again")
    assert 20 <= job.started["step"] < 400, job.said()
    assert "it saves and ends" in launch("--cancel", run)
    assert job.finish() == "CANCELLED", job.said()
    job.wait(lambda: "stopped" in launch("--status", tmp_path), "the lock given back")
    last = max(job.losses())
    assert last == 400 or (run / "checkpoints" / f"step-{last:08d}").is_dir(), job.said()


def test_a_rank_killed_is_no_end(slurm, launch, tiny, tmp_path):
    run, config = tmp_path / "run", tmp_path / "config.json"
    train = {"steps": 300, "warmup_steps": 3}
    config.write_text(json.dumps(tiny(run, train=train, eval={"every_steps": 0})))
    launch(
        "--config", config, "--nodes", 2, "--gpus-per-node", 1, *CORES, "--set=log.every_steps=1"
    )
    note = json.loads((run / "jobs" / "launched.json").read_text())
    job = Job(slurm, note["job"], run, run / "jobs" / f"{note['job']}_0_log.out")
    job.wait_for_step(20)
    slurm.kill_task(job.nodes[-1], "submitit.core._submit")
    job.wait(lambda: job.started["total"] == 1, "training again")
    assert job.finish() == "COMPLETED", job.said()
    assert "finished" in launch("--status", tmp_path)
