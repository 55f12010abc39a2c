"""The profiler over some steps, and the snapshot left behind when a GPU runs out of memory."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from torch.autograd import DeviceType
from whole_runs import assert_equal_runs, train

from gam_scale.errors import UserError
from gam_scale.parallel.world import World
from gam_scale.train.hooks.out_of_memory import OutOfMemory
from gam_scale.train.hooks.profile import LONGEST, longest

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
GPU = World(3, 4, 3, 4, torch.device("cuda:3"))


def trace_of(path):
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_a_trace_has_the_steps_asked_for_and_changes_nothing(tmp_path, tiny, whole, curve):
    run = tmp_path / "run"
    train(tiny(run, train={"profile": [3, 5]}))
    assert_equal_runs(run, whole(), curve)
    (file,) = (run / "logs" / "profile").iterdir()
    assert file.name == "steps-3-5-rank0.json.gz"
    names = [event.get("name") for event in trace_of(file)]
    assert {f"step {i}" for i in range(1, 21) if f"step {i}" in names} == {
        "step 3",
        "step 4",
        "step 5",
    }
    assert "aten::mm" in names
    log = (run / "logs" / "rank0.log").read_text().splitlines()
    (first,) = (i for i, line in enumerate(log) if "what took longest" in line)
    rows = log[first + 1 : first + 1 + LONGEST]
    assert all(" ms " in row and "%" in row and " x  " in row for row in rows)
    times = [float(row.split()[0]) for row in rows]
    assert times == sorted(times, reverse=True) and not any("step " in row for row in rows)


def train_on_ranks(world, config):
    train(config)


def test_each_rank_has_a_trace_though_the_run_ends_first(tmp_path, tiny):
    run = tmp_path / "run"
    run_ranks(train_on_ranks, 2, config=tiny(run, train={"steps": 4, "profile": [4, 9]}))
    for rank in range(2):
        names = [
            e.get("name")
            for e in trace_of(run / "logs" / "profile" / f"steps-4-9-rank{rank}.json.gz")
        ]
        assert "step 4" in names and "step 3" not in names


@pytest.mark.parametrize("steps", [[3], [5, 3], [1, 2, 3]])
def test_two_steps_in_order_are_expected(tmp_path, tiny, steps):
    with pytest.raises(UserError, match=r"train.profile is \[.*; expected two steps"):
        train(tiny(tmp_path / "run", train={"profile": steps}))


class Average:
    """Stands in for a row of the profiler's averages."""

    def __init__(self, key, kind, cpu_us, gpu_us, note=False):
        self.key, self.device_type, self.is_user_annotation = key, kind, note
        self.self_cpu_time_total, self.self_device_time_total, self.count = cpu_us, gpu_us, 2


def test_on_a_gpu_its_kernels_are_named_and_not_who_launched_them():
    events = [
        Average("aten::mm", DeviceType.CPU, 9000, 3000),
        Average("gemm_kernel", DeviceType.CUDA, 0, 3000),
        Average("copy_kernel" + 200 * "x", DeviceType.CUDA, 0, 1000),
        Average("step 3", DeviceType.CUDA, 0, 5000, note=True),
    ]
    gemm, copy = longest(events, GPU.device)
    assert gemm == "      3.00 ms  75.0%        2 x  gemm_kernel"
    assert copy.startswith("      1.00 ms  25.0%") and len(copy) < 150
    assert longest(events, ALONE.device) == ["      9.00 ms 100.0%        2 x  aten::mm"]


@pytest.mark.parametrize("trace", [False, True])
def test_a_gpu_out_of_memory_leaves_a_snapshot(tmp_path, monkeypatch, caplog, trace):
    """torch's calls for a GPU, which a CPU build lacks, are replaced by ones that note them."""
    calls, memory = [], torch.cuda.memory
    record = lambda enabled, **how: calls.append((enabled, *how.values()))  # noqa: E731
    monkeypatch.setattr(memory, "_record_memory_history", record)
    monkeypatch.setattr(memory, "_dump_snapshot", calls.append)
    monkeypatch.setattr("gam_scale.train.hooks.out_of_memory.logger.propagate", True)
    hook, loop = OutOfMemory(tmp_path / "profile"), loop_on(GPU, trace)
    hook.start(loop)
    hook.end(loop, torch.OutOfMemoryError("too much"))
    file = tmp_path / "profile" / "memory-rank3.pickle"
    history = [("state", "state", "python")] * trace, [(None,)] * trace
    assert calls == [*history[0], str(file), *history[1]]
    assert f"out of memory on cuda:3: {file} shows" in caplog.text


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("on a CPU"), MemoryError()])
def test_on_a_cpu_nothing_is_left(tmp_path, error):
    hook, loop = OutOfMemory(tmp_path / "profile"), loop_on(ALONE, True)
    hook.start(loop)
    hook.end(loop, error)
    assert not (tmp_path / "profile").exists()


def loop_on(world, trace):
    train = SimpleNamespace(profile=[1, 2] * trace)
    return SimpleNamespace(world=world, config=SimpleNamespace(train=train))
