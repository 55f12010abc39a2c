"""Initial weights: every parameter drawn from its own seed, so that shards can be drawn alone."""

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gam_scale.config import ModelConfig
from gam_scale.pulse import beat

EMBEDDING_STD = 0.02


def initial_values(
    model: nn.Module, config: ModelConfig, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Name and initial value of every parameter, one at a time, on the CPU.

    ``model`` gives names and shapes only and may be on the meta device. Each draw depends on
    (seed, parameter name) alone, so a rank that holds a shard of the model gets the same numbers
    as one that holds all of it, at the memory of one parameter.

    ``paper`` is what the official code does: torch's defaults for linear and convolution layers,
    token embeddings (tied to the head, so drawn as a Linear) uniform within 1 / sqrt(d_model),
    position embeddings N(0, 1). ``scaled``, the default, draws both embeddings from N(0, 0.02),
    linear weights from a normal of torch's default variance with zero biases, and shrinks the
    layers that write to the residual stream by 1 / sqrt(2 n_layers).
    """
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            beat()
            value = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype))
            generator = torch.Generator().manual_seed(_seed_of(seed, f"{prefix}.{name}"))
            module._parameters[name] = value  # modules with a rule of their own fill what they hold
            try:
                with torch.no_grad():
                    own = getattr(module, "init_parameter", None)
                    if own is None or not own(name, generator):
                        _generic(module, name, value, config, generator)
            finally:
                module._parameters[name] = parameter
            yield f"{prefix}.{name}".removeprefix("."), value.detach()


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of ``model`` in place with its initial value."""
    parameters = dict(model.named_parameters())
    for name, value in initial_values(model, config, seed):
        parameters[name].data.copy_(value)


def _generic(
    module: nn.Module, name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator
) -> None:
    if isinstance(module, nn.LayerNorm):
        parameter.fill_(1.0 if name == "weight" else 0.0)
    elif isinstance(module, nn.Embedding):
        _embedding(module, parameter, config, generator)
    elif isinstance(module, nn.Linear) and config.init == "paper":
        bound = 1.0 / math.sqrt(module.in_features)
        parameter.uniform_(-bound, bound, generator=generator)
    elif isinstance(module, nn.Linear):
        _scaled_linear(module, name, parameter, config, generator)
    else:
        raise AssertionError(f"no initialisation rule for {type(module).__name__}.{name}")


def _embedding(
    module: nn.Module, parameter: Tensor, config: ModelConfig, generator: torch.Generator
) -> None:
    if config.init == "scaled":
        parameter.normal_(0.0, EMBEDDING_STD, generator=generator)
    elif getattr(module, "is_position", False):
        parameter.normal_(0.0, 1.0, generator=generator)
    else:
        bound = 1.0 / math.sqrt(config.d_model)
        parameter.uniform_(-bound, bound, generator=generator)


def _scaled_linear(
    module: nn.Linear, name: str, parameter: Tensor, config: ModelConfig, generator: torch.Generator
) -> None:
    if name == "bias":
        parameter.zero_()
        return
    std = 1.0 / math.sqrt(3.0 * module.in_features)  # the variance of torch's default uniform
    if getattr(module, "is_residual_output", False):
        std /= math.sqrt(2.0 * config.n_layers)
    parameter.normal_(0.0, std, generator=generator)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes a signed 64-bit number
