"""One block of a shipped config, as a run has it: prepared, autocast, on packed documents."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from benchmarks.accept.fla import run_in
from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped, sizes, usual_backend
from gam_scale.config import ModelConfig
from gam_scale.kernels.choice import PORTABLE
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.parallel.blocks import prepare_blocks

Backend = str | Callable[..., Any]


class Maker(NamedTuple):
    """How a block's tensors are made: its model, and its layout on a device."""

    model: Callable[[ModelConfig, int, torch.device], LanguageModel]  # config, seed, device
    send: Callable[[Layout, torch.device], Layout]


REAL = Maker(build_model, Layout.to)

DOCUMENT = 1000
"""Tokens of each document in a sequence but the last; no chunk or segment ends with a document."""


class OneBlock:
    """A block of ``configs/NAME.json`` on a batch of that config's shape, forward and backward."""

    def __init__(
        self,
        check: Check,
        name: str,
        *settings: str,
        compiled: bool,
        backend: Backend = "",
        implementation: str = PORTABLE,
        maker: Maker = REAL,
    ) -> None:
        """Build the block; ``settings`` replace the config's, ``backend`` the usual one."""
        self.check = check
        self.config = shipped(check, name, settings)
        self.config.model.n_layers = 1
        rows, length, width = sizes(self.config)
        torch.manual_seed(0)
        self.model = maker.model(self.config.model, 0, check.device)
        run_in(self.model, implementation, self.config.train.fp32_matmul)
        prepare_blocks(
            self.model,
            self.config.train.recompute,
            compiled=compiled,
            backend=backend or usual_backend(check.device),
            segment=check.pick(None, length // 2 if name == "ctx16k" else None),
        )
        self.tokens = rows * length
        self.x = torch.randn(rows, length, width, device=check.device, requires_grad=True)
        self.grad = torch.randn_like(self.x)
        with unset_fake_temporarily():  # a layout's numbers are read, even for a fake device
            positions = (torch.arange(length) % DOCUMENT).repeat(rows, 1)
            layout = Layout.of(positions).turned(self.config.model.rotation())
        self.layout = maker.send(layout, check.device)

    def forward(self) -> Tensor:
        """Call the block as training does."""
        bf16 = self.config.train.precision == "bf16"
        with torch.autocast(self.check.device.type, torch.bfloat16, enabled=bf16):
            return self.model.blocks[0](self.x, self.layout)

    def step(self) -> None:
        """Drop the gradients, then run forward and backward."""
        self.x.grad = None
        self.model.zero_grad(set_to_none=True)
        self.forward().backward(self.grad)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the input and of every parameter, after a step."""
        leaves = {"x": self.x, **dict(self.model.blocks[0].named_parameters())}
        found = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        assert len(found) == len(leaves), "a parameter without a gradient"
        return found
