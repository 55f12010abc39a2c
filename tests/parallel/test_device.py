"""A job that has GPUs does not train on CPUs by mistake."""

import pytest
import torch
from whole_runs import train

from gam_scale.config import load_config
from gam_scale.errors import UserError
from gam_scale.parallel.device import on_gpus


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
        {"CUDA_VISIBLE_DEVICES": "0", "LOCAL_SIZE": "1"},  # the deepspeed command's own
    ],
)
def test_auto_is_the_cpu_where_none_was_given(no_gpu, env):
    assert not on_gpus("auto", env), f"a machine without GPUs is refused: {env}"


@pytest.mark.parametrize("name", ["gam_1b", "ctx16k", "ctx64k"])
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
