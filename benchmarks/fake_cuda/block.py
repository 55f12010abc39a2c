"""One layer of a config, forward and backward on a fake device."""

from collections import Counter as Tally
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from benchmarks.fake_cuda.eager import Counter
from benchmarks.fake_cuda.graphs import Compiler, Graph, Kernel
from gam_scale.config import RunConfig
from gam_scale.kernels.choice import PORTABLE, HasKernels
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.model.parts import MixerConfig
from gam_scale.model.policy import policy_of
from gam_scale.parallel.blocks import SEGMENT, prepare_blocks

DEVICE = torch.device("cuda:0")


@dataclass(frozen=True)
class Trace:
    """Graphs, kernels and memory of one layer in one micro-batch."""

    tokens: int
    graphs: list[Graph]
    failure: str | None  # why it could not be compiled; None: it was, or was not to be
    kernels: list[Kernel]  # of all graphs; of every operator if there are no graphs
    weights: set[torch.Size]  # their shapes

    @property
    def forward_graphs(self) -> int:
        """Number of forward graphs, each of which has one for its backward pass."""
        return sum(not graph.is_backward for graph in self.graphs)

    @property
    def bytes_per_token(self) -> float:
        """Bytes per token that are read from memory and written to it."""
        return sum(kernel.read_and_written for kernel in self.kernels) / self.tokens

    @property
    def kept(self) -> float:
        """Bytes per token that the forward pass keeps, without the layer's input."""
        return sum(g.kept() for g in self.graphs if g.is_backward) / self.tokens

    @property
    def peak(self) -> float:
        """Bytes per token of activations at the backward pass's fullest moment, without the
        input."""
        peaks = [g.peak - g.returned(self.weights) for g in self.graphs if g.is_backward]
        return max(peaks, default=0) / self.tokens


def trace(
    config: RunConfig,
    layer: str | MixerConfig,
    *,
    compiled: bool = True,
    implementation: str = PORTABLE,
) -> Trace:
    """Trace a layer, given by kind or settings, in a micro-batch of this run.

    If the layer does not compile, its operators are counted one by one, as they would run.
    """
    torch._dynamo.reset()
    compiler, counter = Compiler(), Counter()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(config, layer)
        for module in model.modules():
            if isinstance(module, HasKernels):
                module.implementation = implementation
        compilation = prepare_blocks(
            model, config.train.recompute, compiled=compiled, may_fail=True, backend=compiler
        )
        # Under a mode that sees every operator, nothing would be compiled.
        _step(model.blocks[0], config, nullcontext() if compiled else counter)
    if compilation.failure is not None:
        found = trace(config, layer, compiled=False, implementation=implementation)
        return replace(found, failure=compilation.failure)
    kernels = [kernel for graph in compiler.graphs for kernel in graph.kernels]
    tokens = config.train.micro_batch_size * config.data.seq_len
    shapes = {weight.shape for weight in model.parameters()}
    return Trace(tokens, compiler.graphs, None, kernels or counter.kernels, shapes)


def _model(config: RunConfig, layer: str | MixerConfig) -> LanguageModel:
    """Build one layer, with weights in the dtypes in which the run's engine hands them to it."""
    shape = replace(config.model, layers=[layer], n_layers=1, vocab_size=1)
    gathered_in_bf16 = config.parallel.engine == "fsdp" and config.train.precision == "bf16"
    with unset_fake_temporarily():
        model = outline(shape)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            keeps_fp32 = policy_of(module, name).precision == "fp32"
            is_bf16 = gathered_in_bf16 and not keeps_fp32
            dtype = torch.bfloat16 if is_bf16 else torch.float32
            empty = torch.empty(parameter.shape, dtype=dtype, device=DEVICE)
            setattr(module, name, nn.Parameter(empty))
    return model


def _step(block: nn.Module, config: RunConfig, counter: AbstractContextManager[Any]) -> None:
    rows, length = config.train.micro_batch_size, config.data.seq_len
    x = torch.empty(rows, length, config.model.d_model, device=DEVICE, requires_grad=True)
    layout = _layout(config, rows, length).map(lambda y: torch.empty_like(y, device=DEVICE))
    bf16 = config.train.precision == "bf16"
    with counter:
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            y = block(x, layout)
        y.backward(torch.empty_like(y))


def _layout(config: RunConfig, rows: int, length: int) -> Layout:
    """Return the layout that comes with a batch, with its segments: not the layer's work."""
    with unset_fake_temporarily():
        layout = Layout.stream(rows, length)
        if config.data.documents == "reset":
            layout = Layout.of(layout.positions.expand(rows, -1))
        layout = layout.turned(config.model.rotation())
        layout.segments(SEGMENT["cuda"])
        return layout


def by_name(trace: Trace) -> dict[str, tuple[int, float]]:
    """Return for each kernel name the number of kernels and their bytes per token."""
    number: Tally[str] = Tally()
    moved: Tally[str] = Tally()
    for kernel in trace.kernels:
        number[kernel.name] += 1
        moved[kernel.name] += kernel.read_and_written
    return {name: (n, moved[name] / trace.tokens) for name, n in number.items()}
