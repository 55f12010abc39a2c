"""A job that has GPUs does not train on CPUs by mistake, and no two ranks share a GPU."""

import pytest
import torch
from whole_runs import train

from gam_scale.config import load_config
from gam_scale.errors import UserError
from gam_scale.parallel import world as ranks
from gam_scale.parallel.device import gpu_of, on_gpus


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    "env",
    [
        {"SLURM_JOB_GPUS": "0,1"},
        {"SLURM_STEP_GPUS": "0"},
        {"SLURM_GPUS_ON_NODE": "8"},
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-1f2", "RANK": "0", "LOCAL_WORLD_SIZE": "8"},
    ],
)
def test_auto_refuses_the_cpu_where_gpus_were_given(no_gpu, env):
    with pytest.raises(UserError, match=r"is .* but torch sees no GPU .*--torch cuda"):
        on_gpus("auto", env)
    assert not on_gpus("cpu", env), "the CPU that was asked for is refused"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {"SLURM_GPUS_ON_NODE": "0"},
        {"CUDA_VISIBLE_DEVICES": "0", "LOCAL_SIZE": "1"},  # set by the deepspeed command
    ],
)
def test_auto_is_the_cpu_where_none_was_given(no_gpu, env):
    assert not on_gpus("auto", env), f"a machine without GPUs is refused: {env}"


@pytest.mark.parametrize("name", ["gam_1b", "ctx16k", "ctx16k_hybrid", "ctx64k"])
def test_configs_for_gpus_say_so(no_gpu, name):
    device = load_config(f"configs/{name}.json", []).parallel.device
    with pytest.raises(UserError, match="parallel.device is cuda but torch sees no GPU"):
        on_gpus(device, {})


def test_a_job_that_was_given_gpus_ends_before_its_run_directory_is_made(
    tmp_path, tiny, no_gpu, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is 0 but torch sees no GPU"):
        train(tiny(tmp_path / "run", parallel={"device": "auto"}))
    assert not (tmp_path / "run").exists()


def srun(local_rank, tasks, gpus):
    """Return what a task of srun finds in its environment."""
    return {
        "SLURM_PROCID": str(local_rank),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_LOCALID": str(local_rank),
        "SLURM_NODEID": "0",
        "SLURM_STEP_TASKS_PER_NODE": str(tasks),
        "SLURM_GPUS_ON_NODE": str(gpus),
    }


@pytest.mark.parametrize("env", [{}, srun(3, tasks=4, gpus=4), {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}])
def test_where_all_gpus_are_seen_a_rank_has_that_of_its_number(monkeypatch, env):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert gpu_of(3, 4, env) == 3
    assert gpu_of(3, 1, env) == 3, "a launcher that does not say how many ranks a host has"


def test_a_task_that_sees_its_own_gpu_only_has_that(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for rank in range(4):
        env = srun(rank, tasks=4, gpus=4) | {"CUDA_VISIBLE_DEVICES": "0"}
        assert gpu_of(rank, 4, env) == 0
        del env["SLURM_GPUS_ON_NODE"]
        assert gpu_of(rank, 4, env) == 0


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize(
    ("visible", "env"),
    [
        (1, lambda rank: {"CUDA_VISIBLE_DEVICES": "2"}),
        (2, lambda rank: {}),
        (3, lambda rank: srun(rank, tasks=4, gpus=3)),
        (1, lambda rank: srun(rank, tasks=4, gpus=1)),  # one GPU for all tasks of the node
        (1, lambda rank: srun(0, tasks=1, gpus=1)),  # torchrun inside of one task
    ],
)
def test_fewer_gpus_than_ranks_is_a_sentence_on_every_rank(monkeypatch, rank, visible, env):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    with pytest.raises(UserError, match=f"4 ranks run on .* sees {visible} GPUs.*expected a GPU"):
        gpu_of(rank, 4, env(rank))


def test_ranks_join_with_their_device_which_deepspeed_is_told(monkeypatch):
    """DeepSpeed calls set_device with LOCAL_RANK, whichever GPUs are visible."""
    seen = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: seen.update(device=device))
    monkeypatch.setattr(ranks, "meet", lambda *place, **options: ranks.dist.HashStore())
    monkeypatch.setattr(
        ranks.dist, "init_process_group", lambda *a, **options: seen.update(options)
    )
    monkeypatch.setattr(ranks, "_be_patient", lambda seconds: None)
    for name in (*ranks.launcher_environment({}), "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    env = srun(1, tasks=2, gpus=2) | {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    world = ranks.start("cuda")
    assert world.local_rank == 1 and world.device == torch.device("cuda", 0) == seen["device"]
    assert seen["device_id"] == world.device
    assert ranks.os.environ["LOCAL_RANK"] == "0"
    ranks.stop()
    assert "LOCAL_RANK" not in ranks.os.environ
