"""Check 10: the allocator at the largest micro-batch of gam_1b that the plan says fits."""

from dataclasses import replace

import torch

from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped
from benchmarks.accept.training import GIB, run_steps, tell
from gam_scale.config import RunConfig
from gam_scale.plan.gpus import RESERVED
from gam_scale.plan.job import Job
from gam_scale.plan.memory import peak_memory


def with_rows(config: RunConfig, rows: int) -> RunConfig:
    """Return the config with micro-batches of ``rows`` sequences, one micro-batch a step."""
    train = replace(config.train, micro_batch_size=rows, global_batch_size=rows)
    return replace(config, train=train)


def largest(config: RunConfig, free: float) -> int:
    """Return the largest micro-batch, of up to 256 sequences, whose planned peak fits ``free``."""
    rows = 1
    while peak_memory(Job.of(with_rows(config, rows + 1), 1, 1)).total <= free and rows < 256:
        rows += 1
    return rows


def largest_micro_batch(check: Check) -> None:
    """Try the largest planned micro-batch; if it does not fit, nine tenths of it, and so on."""
    layers = f"model.n_layers={check.pick(8, 2)}"
    config = shipped(check, "gam_1b", ["parallel.engine=torch", layers])
    if check.device.type != "cuda":
        tell(check, config, run_steps(check, config))
        return
    free, whole = torch.cuda.mem_get_info(check.device)
    usable = min(free, whole * (1 - RESERVED))
    rows = largest(config, usable)
    check.figure("free memory", usable / GIB, "GiB")
    check.figure("largest micro-batch, planned", rows)
    while True:
        try:
            steps = run_steps(check, with_rows(config, rows))
            break
        except torch.OutOfMemoryError as error:
            check.note(f"{rows} sequences do not fit", error)
            rows = rows * 9 // 10
            if not rows:
                raise
        torch.cuda.empty_cache()
    tell(check, with_rows(config, rows), steps)
    of = torch.cuda.memory_stats(check.device)
    held, reserved = of["allocated_bytes.all.peak"], of["reserved_bytes.all.peak"]
    check.figure("largest micro-batch, found", rows)
    check.figure("reserved at most", reserved / GIB, "GiB")
    check.figure("of it in tensors at most", held / reserved)
    check.figure("inactive pieces at most", of["inactive_split_bytes.all.peak"] / GIB, "GiB")
    for name in ("num_alloc_retries", "num_ooms"):
        check.figure(name, of[name])


PARTS = {"gam_1b": largest_micro_batch}
