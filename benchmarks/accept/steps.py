"""Check 6: twelve steps of a shortened gam_1b under the plain engine and under FSDP2."""

from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped
from benchmarks.accept.training import run_steps, tell


def gam_1b(check: Check, engine: str) -> None:
    """Eight of its 28 layers, the shipped micro-batch, one micro-batch a step."""
    overrides = [f"parallel.engine={engine}", "model.n_layers=8", "train.global_batch_size=2"]
    config = shipped(check, "gam_1b", overrides)
    tell(check, config, run_steps(check, config))


PARTS = {engine: lambda check, engine=engine: gam_1b(check, engine) for engine in ("torch", "fsdp")}
