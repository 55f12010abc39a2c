"""A rank's place in each launcher's environment, collectives, and ``run_ranks`` itself."""

import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import needs
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from gam_scale.errors import UserError
from gam_scale.parallel import world as ranks
from gam_scale.parallel.world import launcher_environment

ROOT = Path(__file__).resolve().parents[2]
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu07",
    "SLURM_JOB_ID": "123",
}


def test_plain_python_is_one_rank():
    place = launcher_environment({})
    assert (place["RANK"], place["WORLD_SIZE"], place["LOCAL_WORLD_SIZE"]) == ("0", "1", "1")
    assert place["MASTER_ADDR"] == "127.0.0.1" and 0 < int(place["MASTER_PORT"]) < 65536


def test_torchrun_and_deepspeed_name_the_local_size_differently():
    common = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    common |= {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        place = launcher_environment(common | {name: "4"})
        assert place == common | {"LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("nodes", "head"),
    [
        ("gpu07", "gpu07"),
        ("gpu[03-05,9]", "gpu03"),
        ("gpu[3,7]", "gpu3"),
        ("alpha,beta[1-2]", "alpha"),
        ("rack[01-02]-n", "rack01-n"),
    ],
)
def test_srun(nodes, head):
    env = SRUN | {"SLURM_STEP_NODELIST": nodes}
    place = launcher_environment(env)
    assert (place["RANK"], place["WORLD_SIZE"]) == ("3", "5")
    assert (place["LOCAL_RANK"], place["LOCAL_WORLD_SIZE"]) == ("0", "1")
    assert place["MASTER_ADDR"] == head
    assert launcher_environment(env | {"SLURM_PROCID": "0"})["MASTER_PORT"] == place["MASTER_PORT"]


@pytest.mark.parametrize(
    ("name", "value"), [("RANK", "first"), ("WORLD_SIZE", "-2"), ("MASTER_PORT", "99999")]
)
def test_what_is_no_number_in_the_environment_is_named(name, value):
    env = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"} | {name: value}
    with pytest.raises(UserError, match=f"{name} is .?{value}.? in the environment; expected"):
        launcher_environment(env)


@pytest.mark.parametrize("value", [None, "", "x", "-1", "9" * 5000])
@pytest.mark.parametrize(
    "name", ["SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"]
)
def test_what_is_no_number_of_slurms_is_named(name, value):
    env = {k: v for k, v in SRUN.items() if k != name} | ({} if value is None else {name: value})
    if name == "SLURM_JOB_ID" and not value:
        assert launcher_environment(env)
        return
    with pytest.raises(UserError, match=f"{name} is .* in the environment; expected"):
        launcher_environment(env)


@pytest.mark.parametrize("node, tasks", [("0", "2"), ("1", "2"), ("2", "1")])
def test_a_nodes_share_of_sruns_tasks(node, tasks):
    assert launcher_environment(SRUN | {"SLURM_NODEID": node})["LOCAL_WORLD_SIZE"] == tasks
    with pytest.raises(UserError, match="SLURM_NODEID 3"):
        launcher_environment(SRUN | {"SLURM_NODEID": "3"})


def sums(world, offset):
    on_gpu = replace(world, device=torch.device("cuda"))  # sums of host numbers use no GPU
    figures = [*world.sum(world.rank + offset, 1.0), *on_gpu.sum(world.rank)]
    return [*figures, world.any(world.rank == 1), on_gpu.any(False)]


def test_collectives_give_every_rank_the_same():
    assert run_ranks(sums, 3, offset=10) == [[33.0, 3.0, 3.0, True, False]] * 3


def fails_on_rank_1(world):
    if world.rank == 1:
        raise RuntimeError("the reason")
    world.barrier()


def abandon_a_collective(world):
    """Leave while rank 0 waits for what rank 1 never joins, as after a failure on GPUs."""
    ranks._backends = lambda: "cuda:nccl"
    waits = dist.all_reduce(torch.ones(1), async_op=True) if world.is_main else None
    ranks.abandon()
    ended = waits is None or waits.exception() is not None or waits.is_completed()
    return [dist.is_initialized(), ended]


def test_a_group_is_abandoned_whatever_its_ranks_wait_for():
    assert run_ranks(abandon_a_collective, 2) == [[False, True]] * 2


def test_a_call_that_does_not_return_ends_the_process_at_its_deadline():
    code = """
import time
from gam_scale.parallel.deadline import deadline
with deadline(0.2):
    time.sleep(99)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and 'File "<string>", line 5' in done.stderr


def test_leaving_takes_its_variables_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")  # somebody else's
    before = dict(os.environ)
    ranks.start("cpu")
    assert os.environ["WORLD_SIZE"] == "1"
    ranks.stop()
    assert dict(os.environ) == before


def test_a_failing_rank_ends_the_others_with_its_traceback():
    with pytest.raises(AssertionError, match="(?s)rank 1 exited with 1.*the reason"):
        run_ranks(fails_on_rank_1, 2)


def leave_while_a_thread_runs(world):
    """Leave while a thread, like a library's, hashes bytes without the interpreter's lock."""
    data, digests = bytes(200_000_000), []
    thread = threading.Thread(target=lambda: digests.append(hashlib.sha256(data).hexdigest()))
    thread.start()
    ranks.stop()
    return digests


@needs.proc  # which shows the threads
def test_leaving_waits_for_threads_that_still_run():
    assert run_ranks(leave_while_a_thread_runs, 1) == [
        [hashlib.sha256(bytes(200_000_000)).hexdigest()]
    ]
