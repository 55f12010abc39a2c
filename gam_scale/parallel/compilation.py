"""Compile each block into one graph by torch.compile; say what was compiled, or why nothing was."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from gam_scale import pulse
from gam_scale.errors import UserError, one_line

logger = logging.getLogger("gam_scale")

Backend = str | Callable[..., Any]
_FAILURES = (TorchDynamoException, FailOnRecompileLimitHit)
"""The exceptions that torch raises when one of its parts cannot compile something."""

BACKWARD_AUTOCAST = "off"
"""Autocast's mode while a backward pass is traced: off, as when an uncompiled backward pass runs.
torch's default, "same_as_forward", casts again what the forward pass computed in float32 on
purpose: the products of a memory's backward pass would be bfloat16 (docs/gpu.md, Precision)."""


class Compilation:
    """Compiles functions, each of which must become a single graph.

    If graph breaks were allowed, torch would silently run a function in pieces or, where the
    backward pass recomputes it, not compile it at all.

    Args:
        backend: torch.compile's backend; None: nothing is compiled.
        may_fail: log a failure and run everything uncompiled from then on; otherwise a failure
            is an error.

    Attributes:
        graphs: number of graphs compiled so far, those without gradients included.
        failure: why nothing is compiled any more, in a phrase; None before a failure.
        when_failed: functions to call at a failure.
    """

    def __init__(self, backend: Backend | None = None, *, may_fail: bool = False) -> None:
        # a run on a GPU chooses between TF32 and fp32 by train.fp32_matmul
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
        self.backend, self.may_fail = backend, may_fail
        self.graphs = 0
        self.failure: str | None = None
        self.when_failed: list[Callable[[], object]] = []

    def __call__(
        self, function: Callable[..., Any], uncompiled: Callable[..., Any]
    ) -> Callable[..., Any]:
        """Return ``function``, compiled at its first call, or ``uncompiled`` after a failure."""
        # Graphs of fixed shapes: another shape (a ragged last batch) must not slow the others.
        compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=self._counted)

        def run(*args: Any) -> Any:
            if self.failure is None:
                try:
                    return compiled(*args)
                except _FAILURES as error:
                    self._fail(error)
            return uncompiled(*args)

        return run

    @property
    def is_on(self) -> bool:
        """Whether the functions run compiled."""
        return self.backend is not None and self.failure is None

    def __str__(self) -> str:
        if self.is_on:
            graphs = "graph" if self.graphs == 1 else "graphs"
            return f"compiled blocks: {self.graphs} {graphs}, no breaks"
        why = self.failure or "torch.compile is not used"
        return f"blocks run uncompiled: {why}"

    # One backend for all functions: torch compiles functions with different backends separately.
    def _counted(self, *args: Any) -> Any:
        self.graphs += 1
        pulse.beat()  # a stage of longer sequences compiles all graphs anew: no hang
        backend = self.backend
        compile_graph = lookup_backend(backend) if isinstance(backend, str) else backend
        assert compile_graph is not None
        # Compile the backward pass with the forward pass, where `run` can handle a failure.
        with functorch_config.patch(
            backward_pass_autocast=BACKWARD_AUTOCAST, force_non_lazy_backward_lowering=True
        ):
            compiled = compile_graph(*args)
        pulse.beat()
        return compiled

    def _fail(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", error)  # a backend's own error
        first, _, _ = str(cause).strip().partition("\n")
        reason = one_line(first or type(cause).__name__, 200)
        if not self.may_fail:
            raise UserError(
                f"a block cannot be compiled: {reason}; expected train.compile auto, which then "
                "goes on uncompiled, or off"
            ) from error
        self.failure = reason
        for call in self.when_failed:
            call()
        logger.warning("%s", self)
