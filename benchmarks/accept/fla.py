"""Layers in their portable form, or in flash-linear-attention's kernels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped
from gam_scale.kernels.choice import PORTABLE, HasKernels
from gam_scale.model.lm import outline
from gam_scale.parallel import world as ranks
from gam_scale.parallel.implementations import choose_implementations

FLA = "fla"
IMPLEMENTATIONS = (PORTABLE, FLA)


def run_in(model: nn.Module, implementation: str, fp32_matmul: str) -> None:
    """Set what choose_implementations sets, without testing whether the implementation agrees."""
    for module in model.modules():
        if isinstance(module, HasKernels):
            module.implementation = implementation
        if hasattr(module, "fp32_matmul"):
            module.fp32_matmul = fp32_matmul  # type: ignore[assignment]  # no tensor


@contextmanager
def installed(check: Check) -> Iterator[None]:
    """Put the tests' stand-ins in the kernels' place within the context, if this is a CPU."""
    if not check.small:
        yield
        return
    import pytest
    import stand_ins  # in tests/, which start.py puts on the path

    with pytest.MonkeyPatch.context() as patch:
        stand_ins.install(patch)
        yield


class _Notes(logging.Handler):
    def __init__(self, check: Check) -> None:
        super().__init__(logging.INFO)
        self.check = check

    def emit(self, record: logging.LogRecord) -> None:
        self.check.note(record.levelname.lower(), record.getMessage())


def chosen(check: Check) -> None:
    """Record what a run of gam_1b with delta and slot layers chooses by itself, and why."""
    layers = ['model.layers=["delta","slot"]', "model.n_layers=2"]
    config = shipped(check, "gam_1b", layers)
    logger, notes = logging.getLogger("gam_scale"), _Notes(check)
    logger.setLevel(logging.INFO)
    logger.addHandler(notes)
    world = ranks.start(check.device.type)
    try:
        model = outline(config.model)
        choose_implementations(model, config, world)
    finally:
        ranks.stop()
        logger.removeHandler(notes)
    for module in model.modules():
        if isinstance(module, HasKernels):
            name = f"{type(module).__name__} runs in flash-linear-attention"
            check.figure(name, module.implementation == FLA, at_least=check.pick(1, 0))
