"""The figures of a logged line, against arithmetic by hand; the test's own clock gives the time."""

import json
import math

import pytest
import torch

from gam_scale.hardware.memory import allocator_figures
from gam_scale.parallel.world import World
from gam_scale.train.metrics import StepMetrics, Throughput

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
def metrics(now: Clock) -> StepMetrics:
    return make(now)


def make(now: Clock, world: World = ALONE) -> StepMetrics:
    clock = Throughput("cpu", now)
    return StepMetrics(
        world, clock, flops_per_token=lambda _: 50.0, peak_flops=2000.0, bytes_per_token=4.0
    )


def test_a_line_is_the_token_weighted_mean_of_its_steps(metrics, now):
    metrics.add(1, torch.tensor(30.0), 10, torch.tensor(1.0))
    metrics.add(1, torch.tensor(30.0), 30, torch.tensor(2.0))
    now.time += 2
    line = metrics.line(step=2, lr=1e-3)
    assert line["loss"] == 1.5  # (30 + 30) / (10 + 30); the mean of the two means would be 2
    assert line["perplexity"] == pytest.approx(math.exp(1.5))
    assert line["bits_per_byte"] == pytest.approx(1.5 / math.log(2) / 4)
    assert (line["step"], line["tokens"], line["lr"], line["grad_norm"]) == (2, 40, 1e-3, 1.5)
    assert (line["tokens_per_s"], line["mfu"]) == (20.0, 20 * 50 / 2000)
    assert line["memory_bytes"] > 1e6 and line["seconds"] == 2
    assert json.loads(json.dumps(line)) == line


def test_a_line_starts_afresh_but_tokens_go_on(metrics, now):
    metrics.add(1, torch.tensor(30.0), 10, torch.tensor(1.0))
    now.time += 1
    metrics.line(1, 1e-3)
    metrics.add(1, torch.tensor(8.0), 4, torch.tensor(3.0))
    now.time += 2
    line = metrics.line(2, 1e-3)
    assert (line["loss"], line["tokens"], line["grad_norm"]) == (2.0, 14, 3.0)
    assert (line["tokens_per_s"], line["seconds"]) == (2.0, 3)


def test_a_skipped_step_counts_in_speed_only(metrics, now):
    metrics.add(1, torch.tensor(30.0), 10, torch.tensor(1.0))
    metrics.add(2, torch.tensor(math.nan), 10, torch.tensor(math.inf))
    now.time += 1
    line = metrics.line(2, 1e-3)
    assert (line["loss"], line["grad_norm"], line["tokens"]) == (3.0, 1.0, 10)
    assert (line["tokens_per_s"], line["skipped_steps"]) == (20.0, 1)


def test_a_line_over_nothing_is_nan_and_a_diverged_one_infinite(metrics, now):
    empty = metrics.line(0, 0.0)  # not a single step, and no time
    assert all(math.isnan(empty[k]) for k in ("loss", "grad_norm", "data_wait"))
    assert empty["tokens_per_s"] is empty["mfu"] is None
    metrics.add(1, torch.tensor(1e6), 10, torch.tensor(1.0))
    assert metrics.line(1, 0.0)["perplexity"] == math.inf


def test_pauses_are_left_out_of_speed_and_waits_are_not(metrics, now):
    metrics.add(1, torch.tensor(1.0), 100, torch.tensor(1.0))
    with metrics.clock.waiting():
        now.time += 1
    now.time += 3
    with pytest.raises(KeyError), metrics.clock.paused():  # a failing evaluation is a pause too
        now.time += 50
        raise KeyError
    line = metrics.line(1, 0.0)
    assert (line["tokens_per_s"], line["data_wait"], line["seconds"]) == (25.0, 0.25, 54)
    now.time += 1
    assert metrics.clock.lap() == (1.0, 0.0)  # neither leaks into the next lap


def test_a_resumed_run_logs_what_an_unbroken_one_does(metrics, now):
    steps = [
        (i, torch.tensor(x / 7, dtype=torch.float32), 3 + i, torch.tensor(x))
        for i, x in enumerate((5.0, 6, 7))
    ]
    other = make(now)
    for step in steps:
        other.add(*step)
    metrics.add(*steps[0])
    state = json.loads(json.dumps(metrics.state_dict()))
    resumed = make(now)
    resumed.load_state_dict(state)
    for step in steps[1:]:
        resumed.add(*step)
    keys = ("tokens", "loss", "grad_norm", "skipped_steps")
    ours, theirs = resumed.line(3, 0.0), other.line(3, 0.0)
    assert [ours[k] for k in keys] == [theirs[k] for k in keys]  # bit for bit


def test_only_the_main_rank_carries_a_restored_sum(metrics, now):
    metrics.add(1, torch.tensor(6.0), 3, torch.tensor(1.0))
    second = make(now, World(1, 1, 1, 1, torch.device("cpu")))  # sees itself only
    second.load_state_dict(metrics.state_dict())
    assert second.state_dict()["loss_sum"] == 0 and second.state_dict()["line_tokens"] == 3


def test_step_seconds_leave_out_waits_pauses_and_first_steps(metrics, now):
    now.time += 30  # a first step that compiles
    metrics.leave_out_start()
    now.time += 2
    with metrics.clock.waiting():
        now.time += 1
    with metrics.clock.paused():
        now.time += 50
    assert metrics.line(2, 0.0)["step_seconds"] == 2.0
    now.time += 3
    state = metrics.state_dict()
    assert state["step_seconds"] == 5.0
    now.time += 4  # steps that a crash takes back
    assert metrics.line(3, 0.0)["step_seconds"] == 9.0
    resumed = make(now)
    resumed.load_state_dict(json.loads(json.dumps(state)))
    now.time += 20
    resumed.leave_out_start()
    now.time += 1
    assert resumed.line(3, 0.0)["step_seconds"] == 6.0
    del state["step_seconds"]  # a checkpoint of an older version
    resumed.load_state_dict(state)


def test_a_gpus_allocator_is_in_the_line_and_a_cpu_has_none(metrics, monkeypatch):
    figures = {"memory_reserved", "alloc_retries", "ooms"}
    assert not figures & metrics.line(1, 0.0).keys()
    stats = {"reserved_bytes.all.peak": 5, "num_alloc_retries": 2, "num_ooms": 1, "other": 7}
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: stats)
    assert allocator_figures("cuda:0") == {"memory_reserved": 5, "alloc_retries": 2, "ooms": 1}
