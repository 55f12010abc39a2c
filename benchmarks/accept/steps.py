"""Check 6: twelve steps of a shortened gam_1b under the plain engine and under FSDP2."""

from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped
from benchmarks.accept.training import run_steps, tell

ONE_MICRO_BATCH = ("train.global_batch_size=2",)


def gam_1b(check: Check, engine: str) -> None:
    """Train eight of gam_1b's 28 layers on the shipped micro-batch, one micro-batch a step."""
    layers = f"model.n_layers={check.pick(8, 2)}"
    config = shipped(check, "gam_1b", [f"parallel.engine={engine}", layers, *ONE_MICRO_BATCH])
    tell(check, config, run_steps(check, config))


PARTS = {engine: lambda check, engine=engine: gam_1b(check, engine) for engine in ("torch", "fsdp")}
