"""What clusters do to jobs, on a real Slurm: after each, the run equals an undisturbed one."""

import signal

import pytest

from gam_scale.train.health import read_ranks

pytestmark = pytest.mark.slurm


def test_time_limit(slurm, start, undisturbed):
    job = start("--time=2", "--signal=USR1@60")  # sent 30 to 60 s after the start: up to 30 s early
    job.wait_for_step(40)
    slurm.hold_until_signalled(job.nodes[-1], "tools/pretrain.py", signal.SIGUSR1, seconds=90)
    assert job.finish() == "COMPLETED", job.said()
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    assert job.started["step"] >= 40
    (resume,) = job.resumes()
    assert resume.steps_again == 0 and resume.ranks == 2


def test_scontrol_requeue(slurm, start, undisturbed):
    job = start()
    job.wait_for_step(40)
    assert job.cores == 4, "a rank does not have the cores that the job was given"
    slurm.run("scontrol", "requeue", job.id)
    assert job.finish() == "COMPLETED", job.said()
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    # The requeue sent SIGTERM, so the ranks saved where they were: no falling back to step 30.
    assert job.started["step"] >= 40
    (resume,) = job.resumes()
    assert resume.steps_again == 0


def test_preemption(slurm, start, undisturbed):
    job = start()
    job.wait_for_step(40)
    urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null"]
    slurm.run("sbatch", *urgent, "--wrap=true")
    assert job.finish() == "COMPLETED", job.said()
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    assert job.started["step"] >= 40
    (resume,) = job.resumes()
    assert resume.steps_again == 0 and resume.ranks == 2


@pytest.mark.parametrize("which", ["batch node", "another"])
def test_crash_of_a_node(slurm, start, undisturbed, which):
    job = start()
    job.wait_for_step(40)
    node = job.nodes[0 if which == "batch node" else -1]
    slurm.crash(node)
    try:
        # Slurm finds out by itself after SlurmdTimeout; like a health check, say so at once.
        slurm.run("scontrol", "update", f"nodename={node}", "state=down", "reason=drill")
        assert job.finish() == "COMPLETED", job.said()
    finally:
        slurm.start(node)
        slurm.resume(node)
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    assert job.started["step"] >= 30  # nothing is lost beyond the last checkpoint
    assert len(job.resumes()) == 1


def test_scancel_saves_and_does_not_requeue(slurm, start, undisturbed):
    job = start()
    job.wait_for_step(40)
    slurm.run("scancel", job.id)
    assert job.finish() == "CANCELLED" and job.restarts == 0, job.said()
    job.wait(lambda: not slurm.job(job.id).get("NodeList", "") or _free(slurm), "its nodes free")
    last = max(job.losses())
    assert (job.run / "checkpoints" / f"step-{last:08d}").is_dir(), job.said()
    assert job.losses() == {step: undisturbed[step] for step in range(1, last + 1)}


def test_two_jobs_never_write_one_run(start):
    longer = "train.steps=400"  # longer than another job takes to start
    first = start(settings=longer)
    first.wait_for_step(1)
    second = start("--output=/dev/null", settings=longer)
    assert second.finish() == "FAILED", second.said()
    said = (first.run / "jobs" / second.id / "rank0.log").read_text()
    assert "is being written by process" in said and f"job {first.id}" in said
    assert first.finish() == "COMPLETED", first.said()
    # Ranks report their health with their hosts' names.
    one, other = first.nodes
    assert [rank.host for rank in read_ranks(first.run / "ranks.json")] == [one, other]
    log = (first.run / "logs" / "rank0.log").read_text()
    assert f"the slowest link: rank 0 on {one} with rank 1 on {other} at" in log


def _free(slurm) -> bool:
    return slurm.idle() == set(slurm.nodes)
