"""Convert models from and to weights of the official GAM code, published with arXiv 2509.00605."""

import re
from dataclasses import replace

import torch
from torch import Tensor

from gam_scale.config import ModelConfig
from gam_scale.errors import UserError, one_line
from gam_scale.model.feedforwards.mlp import MLPConfig
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.mixers.static import StaticLayer
from gam_scale.model.norms.layernorm import LayerNormConfig
from gam_scale.strict import from_dict

_OURS_TO_OFFICIAL = {
    "embedding.weight": "token_embedding.weight",
    "position.weight": "pos_embedding.weight",
    "norm.": "ln_f.",
    ".norm1.": ".ln1.",
    ".norm2.": ".ln2.",
    ".conv.": ".causal_conv.",
    ".memory.bank": ".memory_bank",
    ".ffn.up.": ".ffn.0.",
    ".ffn.down.": ".ffn.2.",
}

_DIMS = {
    "token_embedding.weight": 2,
    "pos_embedding.weight": 2,
    "blocks.0.memory_bank": 2,
    "blocks.0.causal_conv.weight": 3,
}
"""Number of dimensions of the tensors that the model's sizes are read from."""


def load_official(state_dict: dict[str, Tensor]) -> LanguageModel:
    """Build our model with the official code's weights, of whatever size, in their dtype.

    The state dict does not hold the dropout probability; the model gets the paper's 0.1.

    Raises:
        UserError: a tensor is missing, unknown, or of a shape that does not fit the others.
    """
    config = _config_of(state_dict)
    dtype = state_dict["token_embedding.weight"].dtype
    model = build_model(config, seed=0).to(dtype)
    wanted = {official_name(name): p for name, p in model.named_parameters()}
    for name in state_dict:
        if name not in wanted and name != "head.weight":
            raise UserError(f"{one_line(name)} is not a tensor of the official GAM model")
    embedding = state_dict["token_embedding.weight"]
    if not torch.equal(state_dict.get("head.weight", embedding), embedding):
        raise UserError(
            "head.weight differs from token_embedding.weight; expected one tensor for both, as in "
            "the official GAM model"
        )
    for name, parameter in wanted.items():
        if name not in state_dict:
            raise UserError(f"the official state dict has no tensor {name}")
        if state_dict[name].shape != parameter.shape:
            raise UserError(
                f"{name} has shape {tuple(state_dict[name].shape)}; expected "
                f"{tuple(parameter.shape)} for a model of this size"
            )
        parameter.data.copy_(state_dict[name])
    return model


def dump_official(model: LanguageModel) -> dict[str, Tensor]:
    """Return the state dict that the official ``load_state_dict`` takes, its tied head included.

    Raises:
        UserError: the model has no counterpart there (another block, an ablation, no positions).
    """
    config = model.config
    theirs = StaticLayer(ffn=MLPConfig(), norm=LayerNormConfig())
    free = ("n_slots", "kernel_size")  # sizes
    plain = all(
        isinstance(layer, StaticLayer)
        and replace(layer, **{name: getattr(theirs, name) for name in free}) == theirs
        for layer in config.stack()
    )
    is_all_plain = plain and config.final_norm() == theirs.norm
    is_all_plain &= config.position == "learned" and config.biases and config.tied_head
    is_all_plain &= not config.logit_softcap
    if not is_all_plain:
        raise UserError(
            "the official code has no counterpart of this model; expected static memories, fusion "
            "gate, both paths, learned positions, ffn_mult 4, and defaults of all else"
        )
    state = {official_name(n): p.detach().clone() for n, p in model.named_parameters()}
    state["head.weight"] = state["token_embedding.weight"]
    return state


def official_name(name: str) -> str:
    """Return the official code's name of our parameter ``name``."""
    for ours, theirs in _OURS_TO_OFFICIAL.items():
        if name.startswith(ours) or (ours.startswith(".") and ours in name):
            return name.replace(ours, theirs, 1)
    return name


def _config_of(state: dict[str, Tensor]) -> ModelConfig:
    for name in _DIMS:
        if name not in state:
            raise UserError(f"the official state dict has no tensor {name}")
    for name, dims in _DIMS.items():
        if state[name].dim() != dims:
            shape = tuple(state[name].shape)
            raise UserError(f"{name} has shape {shape}; expected {dims} dimensions")
    vocab_size, d_model = state["token_embedding.weight"].shape
    layers = {int(m[1]) for name in state if (m := re.match(r"blocks\.(\d{1,9})\.", name))}
    n_slots, _ = state["blocks.0.memory_bank"].shape
    *_, kernel_size = state["blocks.0.causal_conv.weight"].shape
    sizes = {
        "d_model": d_model,
        "n_layers": len(layers),
        "vocab_size": vocab_size,
        "max_seq_len": state["pos_embedding.weight"].shape[0],
        "gam": {"n_slots": n_slots, "kernel_size": kernel_size},
    }
    return from_dict(ModelConfig, {"block": "gam", **sizes}, "its model")
