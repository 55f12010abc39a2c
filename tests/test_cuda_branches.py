"""Every line that asks torch.cuda for something is run by a test, on machines without a GPU too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_lines
import pytest
import torch

from gam_scale.hardware.memory import peak_memory_bytes, reset_peak_memory
from gam_scale.hardware.peak import _matmul_seconds
from gam_scale.hardware.processor import find_device
from gam_scale.model.layout import Layout
from gam_scale.parallel.world import World
from gam_scale.reproduce import blocks
from gam_scale.train import preflight
from gam_scale.train.health import TIMINGS, Health
from gam_scale.train.metrics import Throughput

GPU = torch.device("cuda")
ELSEWHERE = (
    "tests/data/test_transfer.py",
    "tests/hardware/test_compiler.py",
    "tests/hardware/test_peak.py",
    "tests/kernels/test_attention_cuda.py",
    "tests/parallel/test_device.py",
    "tests/parallel/test_world.py",
    "tests/train/test_last_loss.py",
    "tests/train/test_metrics.py",
    "tests/train/test_profile.py",
)
"""The test files that run the lines that this file does not."""


@pytest.fixture
def calls(monkeypatch):
    """The functions of torch.cuda called so far; tensors for a GPU are made on the CPU."""
    made: list[str] = []
    answers = {
        "is_available": True,
        "get_device_name": "NVIDIA H100 80GB HBM3",
        "max_memory_allocated": 77,
        "mem_get_info": (60 << 30, 80 << 30),
        "reset_peak_memory_stats": None,
        "synchronize": None,
    }
    for name, answer in answers.items():

        def answered(*_, name=name, answer=answer):
            made.append(name)
            return answer

        monkeypatch.setattr(torch.cuda, name, answered)
    for name in ("randn", "ones", "full"):
        monkeypatch.setattr(torch, name, _on_the_cpu(getattr(torch, name)))
    monkeypatch.setattr(Layout, "to", lambda self, device: self)
    return made


def _on_the_cpu(create):
    return lambda *args, device=None, **options: create(*args, **options)


def test_a_gpu_is_found_by_itself(calls):
    assert find_device("auto") == find_device("cuda") == GPU
    assert blocks.name("cuda").startswith("NVIDIA")


def test_a_gpus_memory_is_what_its_allocator_says(calls):
    reset_peak_memory("cuda")
    assert peak_memory_bytes("cuda") == 77
    assert calls == ["reset_peak_memory_stats", "max_memory_allocated"]


def test_products_are_timed_to_their_end(calls):
    assert _matmul_seconds(8, torch.float32, GPU) > 0
    assert calls.count("synchronize") >= 2


def test_a_step_is_timed_to_its_end(calls):
    Throughput(GPU).so_far()
    assert "synchronize" in calls


def test_a_rank_is_probed_between_two_waits(calls):
    health = Health(World(0, 1, 0, 1, GPU))
    assert health._probe() > 0 and calls.count("synchronize") == 2 * TIMINGS


@pytest.mark.parametrize(("free", "problem"), [(80, None), (8, "finds 8.0 of 80.0 GiB free")])
def test_a_gpu_that_others_use_is_named_before_training(calls, monkeypatch, free, problem):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free << 30, 80 << 30))
    found = preflight._device(GPU)
    assert [problem in sentence for sentence in found] == ([True] if problem else [])


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_a_block_is_timed_to_its_end(calls):
    weight = torch.zeros(4, requires_grad=True)
    on_gpu = SimpleNamespace(device=GPU)

    class Block:
        norm1 = SimpleNamespace(weight=weight)

        def parameters(self):
            return [on_gpu]

        def __call__(self, x, layout):
            return x * weight

        def zero_grad(self, set_to_none):
            weight.grad = None

    found = blocks._measure(Block(), 1, 4, 0.1)
    assert found["bytes"] == 77 and calls.count("synchronize") > found["timed"]


@pytest.mark.gpu_full
def test_every_line_for_a_gpu_is_run_by_a_test(tmp_path):
    """The tests run in a process of their own, which traces lines from its start."""
    seen = tmp_path / "lines.json"
    env = os.environ | {"CUDA_LINES": str(seen), "PYTHONPATH": str(Path(__file__).parent)}
    here = ["tests/test_cuda_branches.py", "-k", "not every_line_for_a_gpu"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cuda_lines", *ELSEWHERE, *here]
    done = subprocess.run(
        command, cwd=cuda_lines.ROOT, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    ran = {tuple(pair) for pair in json.loads(seen.read_text())}
    unseen = [
        f"{branch}, line {line}"
        for branch, lines in cuda_lines.all_lines().items()
        for line in lines
        if (branch.partition(":")[0], line) not in ran
    ]
    assert not unseen, f"no test runs {unseen}: add one, and its file to ELSEWHERE"
