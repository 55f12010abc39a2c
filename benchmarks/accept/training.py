"""Steps of a shipped config, called as the training loop calls them, on random tokens."""

import statistics
import time
from typing import NamedTuple

import torch

from benchmarks.accept.record import Check
from benchmarks.engines import step_of
from gam_scale.config import RunConfig
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.memory import peak_memory_bytes, reset_peak_memory
from gam_scale.hardware.peak import device_peak_flops
from gam_scale.model.lm import outline
from gam_scale.parallel import world as ranks
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.plan.job import Job
from gam_scale.plan.memory import peak_memory

GIB = 2**30
STEPS = 12
WARM_UP = 3
"""First steps, which compile and are not timed."""


class Steps(NamedTuple):
    """Time and memory of a run's steps."""

    seconds: float
    """Median time of a step, without the first ones."""
    peak_bytes: int
    """Most that tensors held at once on a GPU; on a CPU, the process's peak resident size."""


def run_steps(check: Check, config: RunConfig) -> Steps:
    """Train ``config`` for some steps of one micro-batch, on random tokens."""
    world = ranks.start(check.device.type)
    try:
        compiled = check.device.type == "cuda" and can_compile(check.device)[0]
        strategy = build_strategy(config, world.arranged(config.parallel), compiled=compiled)
        initialise(strategy, config)
        step = step_of(strategy, config)
        times = []
        reset_peak_memory(check.device)
        for _ in range(check.pick(STEPS, WARM_UP + 1)):
            begun = time.perf_counter()
            step()
            if check.device.type == "cuda":
                torch.cuda.synchronize(check.device)
            times.append(time.perf_counter() - begun)
        check.figure("first step, with compiling", times[0], "s")
        return Steps(statistics.median(times[WARM_UP:]), peak_memory_bytes(check.device))
    finally:
        ranks.release()
        ranks.stop()


def tell(check: Check, config: RunConfig, steps: Steps) -> None:
    """Record speed, MFU, and peak memory beside the planned one."""
    rows, length = config.train.micro_batch_size, config.data.seq_len
    tokens = rows * length
    flops = 3 * outline(config.model).flops_per_token(length) * tokens
    peak = device_peak_flops(check.device, config.train.precision)
    check.note("is", f"{config.model.n_layers} layers, {rows} sequences of {length:,} tokens")
    check.figure("step", steps.seconds * 1e3, "ms")
    check.figure("speed", tokens / steps.seconds, "tokens/s")
    check.figure("MFU", flops / steps.seconds / peak.flops)
    check.figure("peak memory", steps.peak_bytes / GIB, "GiB")
    planned = peak_memory(Job.of(config, 1, 1)).total
    check.figure("peak memory, planned", planned / GIB, "GiB")
    if check.device.type == "cuda":
        check.figure("measured over planned", steps.peak_bytes / planned)
