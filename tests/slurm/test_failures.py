"""What goes wrong inside a job, on a real Slurm: the job goes on, or it ends and says why."""

import errno
import socket

import pytest
from slurm.cluster import SMALL_DISK_MB

from gam_scale.parallel.world import _port

pytestmark = pytest.mark.slurm
RANK = "tools/pretrain.py"


def test_a_rank_killed(slurm, start, undisturbed):
    job = start()
    job.wait_for_step(40)
    slurm.kill_task(job.nodes[-1], RANK)
    assert job.finish() == "COMPLETED", job.said()
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    assert len(job.resumes()) == 1
    # The rank that survived says which one died.
    assert "rank 1 is gone" in (job.run / "logs" / "rank0.log").read_text()


def test_a_port_that_another_program_has_costs_no_restart(start):
    job = start(settings="train.steps=12")
    port = int(_port({"SLURM_JOB_ID": job.id}, alone=False))
    with socket.create_server(("", port)):
        assert job.finish() == "COMPLETED", job.said()
    assert job.restarts == 0, job.said()
    said = (job.run / "jobs" / job.id / "rank0.log").read_text()
    assert f"MASTER_PORT {port} is taken by another process" in said, said


def test_a_crash_loop_ends_with_the_reason(slurm, start):
    job = start(settings="checkpoint.max_restarts=1 checkpoint.every_steps=1000")
    for restarts in (0, 1):
        job.wait(lambda n=restarts: job.started["total"] == n, f"start {restarts + 1}")
        slurm.kill_task(job.nodes[-1], RANK)
    assert job.finish() == "FAILED", job.said()
    assert job.restarts == 2
    said = job.output.read_text()
    assert "1 restarts in a row ended before a checkpoint past step 0" in said, job.said()
    assert "rank 1 is gone" in said, job.said()


@pytest.mark.parametrize("which", ["batch node", "another"])
def test_a_node_that_hangs(slurm, start, undisturbed, which):
    job = start()
    job.wait_for_step(40)
    node = job.nodes[0 if which == "batch node" else -1]
    slurm.freeze(node)
    try:
        assert job.finish() == "COMPLETED", job.said()
    finally:
        slurm.thaw(node)
    assert job.restarts == 1, job.said()
    assert job.losses() == undisturbed
    assert len(job.resumes()) == 1


def test_a_full_disk_and_the_same_job_again(slurm, start, undisturbed):
    folder = slurm.small_disk / "full"
    job = start(folder=folder)
    job.wait_for_step(35)
    filler = slurm.small_disk / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            for _ in range(SMALL_DISK_MB * 16):
                file.write(b"\0" * 65536)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # full, as wanted
    assert job.finish() == "FAILED" and job.restarts == 0, job.said()
    assert (job.run / "checkpoints" / "step-00000030").is_dir()
    filler.unlink()
    again = start(folder=folder)
    assert again.finish() == "COMPLETED", again.said()
    assert again.losses() == undisturbed


def test_fewer_nodes_after_a_crash(slurm, start, undisturbed):
    """The allocation shrinks: batch and sample order stay, sums are added in another order."""
    job = start()
    job.wait_for_step(40)
    kept, lost = job.nodes
    others = [node for node in slurm.nodes if node not in (kept, lost)]
    slurm.crash(lost)
    try:
        for node, state in [*((other, "drain") for other in others), (lost, "down")]:
            slurm.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=drill")
        job.wait(lambda: job.state == "PENDING", "the requeue")
        # As the job's owner does if the lost node will not come back soon; see docs/cluster.md.
        fewer = ("NumNodes=1", "NumTasks=1", "NumCPUs=2")
        slurm.run("scontrol", "update", f"jobid={job.id}", *fewer)
        assert job.finish() == "COMPLETED", job.said()
        assert job.nodes == [kept], job.said()
    finally:
        slurm.start(lost)
        for node in (*others, lost):
            slurm.resume(node)
    losses = job.losses()
    assert job.restarts == 1 and losses.keys() == undisturbed.keys(), job.said()
    assert job.started["step"] >= 30
    (resume,) = job.resumes()
    assert resume.ranks == 1
    assert list(losses.values()) == pytest.approx(list(undisturbed.values()), rel=1e-4)
