"""Check 8: ctx16k shortened, under its own engine; gradients of rates at 16k tokens."""

from closeness import off  # in tests/, which start.py puts on the path
from torch import Tensor

from benchmarks.accept.one_block import OneBlock
from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped
from benchmarks.accept.training import run_steps, tell

GATES = ("memory.gate.log_rate", "memory.gate.strength.weight", "memory.beta.weight")
"""Parameters whose gradients are sums over all tokens, where errors of bf16 would show first."""


def steps(check: Check) -> None:
    """Train four of ctx16k's 24 layers under DeepSpeed's stage 2, a sequence a step."""
    layers = f"model.n_layers={check.pick(4, 2)}"
    rows = ("train.global_batch_size=1", "train.micro_batch_size=1")
    config = shipped(check, "ctx16k", [layers, *rows])
    tell(check, config, run_steps(check, config))


def gradients(check: Check) -> None:
    """Compare a block's gradients in bf16, eager and compiled, with those in float32, eager."""
    exact = _gradients(check, "fp32", compiled=False)
    for name, compiled in (("eager", False), ("compiled", True)):
        found = _gradients(check, "bf16", compiled=compiled)
        for gate in GATES:
            wrong = off(found[gate], exact[gate])
            # Weights and activations have 8 bits: errors are of one size, compiled or not.
            check.figure(f"{gate}, {name} bf16 from fp32", wrong, "relative", at_most=0.1)


def _gradients(check: Check, precision: str, *, compiled: bool) -> dict[str, Tensor]:
    block = OneBlock(check, "ctx16k", f"train.precision={precision}", compiled=compiled)
    block.step()
    return {name: grad.clone() for name, grad in block.gradients().items()}


PARTS = {"gradients of rates": gradients, "steps": steps}
