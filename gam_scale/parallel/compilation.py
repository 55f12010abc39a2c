"""Blocks compiled by torch.compile, each into one graph; what was compiled, or why not, to log."""

import logging
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
"""What torch raises where one of its parts could not compile something."""

BACKWARD_AUTOCAST = "off"
"""Autocast while a backward pass is traced, in torch's words: off, as where an uncompiled one
runs. torch's default, "same_as_forward", casts anew what the forward pass computed in float32
on purpose: the products of a memory's backward pass would be bfloat16 (docs/gpu.md, Precision)."""


class Compilation:
    """Compiles functions, none of which may be cut into several graphs.

    A function that cannot be one graph would run in pieces or, where it is recomputed in the
    backward pass, not compiled at all, and torch would say nothing.

    Args:
        backend: what torch.compile compiles with; None: nothing is compiled.
        may_fail: a failure is logged and everything runs uncompiled from then on; else it is an
            error.

    Attributes:
        graphs: compiled so far, those without gradients included.
        failure: why nothing is compiled any more, in a phrase.
        when_failed: called then.
    """

    def __init__(self, backend: Backend | None = None, *, may_fail: bool = False) -> None:
        self.backend, self.may_fail = backend, may_fail
        self.graphs = 0
        self.failure: str | None = None
        self.when_failed: list[Callable[[], object]] = []

    def __call__(
        self, function: Callable[..., Any], uncompiled: Callable[..., Any]
    ) -> Callable[..., Any]:
        """``function`` compiled at its first call; ``uncompiled`` does the same without that."""
        # Shapes are fixed; another one (a ragged last batch) must not slow the others.
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
        """Whether what is called runs compiled."""
        return self.backend is not None and self.failure is None

    def __str__(self) -> str:
        if self.is_on:
            graphs = "graph" if self.graphs == 1 else "graphs"
            return f"compiled blocks: {self.graphs} {graphs}, no breaks"
        why = self.failure or "torch.compile is not used"
        return f"blocks run uncompiled: {why}"

    # One method for all functions: torch compiles functions that differ in their backend apart.
    def _counted(self, *args: Any) -> Any:
        self.graphs += 1
        pulse.beat()  # a stage of longer sequences compiles all of them anew: no hang
        backend = self.backend
        compile_graph = lookup_backend(backend) if isinstance(backend, str) else backend
        assert compile_graph is not None
        # The backward pass is compiled with the forward pass, where a failure is ours to handle.
        with functorch_config.patch(
            backward_pass_autocast=BACKWARD_AUTOCAST, force_non_lazy_backward_lowering=True
        ):
            compiled = compile_graph(*args)
        pulse.beat()
        return compiled

    def _fail(self, error: Exception) -> None:
        cause = getattr(error, "inner_exception", error)  # what a backend met
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
