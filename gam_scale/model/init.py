"""Initial weights: each parameter has a seed of its own, so that shards can be drawn alone."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gam_scale.model.config import ModelConfig
from gam_scale.model.policy import Draw, policy_of
from gam_scale.pulse import beat


def initial_values(
    model: nn.Module, config: ModelConfig, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and initial value of every parameter, one at a time, on the CPU.

    ``model`` only gives names, shapes and policies, so it may be on the meta device. Each draw
    depends on (seed, parameter name) alone, so a rank that holds a shard of the model gets the same
    numbers as one that holds all of it, and needs memory for one parameter only.

    ``paper`` is what the official code does: torch's defaults for linear and convolution layers,
    token embeddings (tied to the head, so drawn as a Linear) uniform within 1 / sqrt(d_model),
    position embeddings N(0, 1). ``scaled``, the default, draws both embeddings from N(0, 0.02) and
    linear weights from a normal of torch's default variance, with zero biases. Weights that write
    to the residual stream shrink by 1 / sqrt(2 n_layers), or by 1 / sqrt(n_layers) where the mixer
    makes the only write of its layer and its configuration ``counts_writes``.
    """
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            beat()
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
            generator = torch.Generator().manual_seed(_seed_of(seed, f"{prefix}.{name}"))
            draw = Draw(generator, config.init, config.n_layers)
            with torch.device("cpu"):  # for tensors that a policy creates, whatever the default
                policy_of(module, name).init(module, value, draw)
            yield f"{prefix}.{name}".removeprefix("."), value


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of ``model`` in place with its initial value."""
    parameters = dict(model.named_parameters())
    for name, value in initial_values(model, config, seed):
        parameters[name].data.copy_(value)


def _seed_of(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # manual_seed takes a signed 64-bit number
