"""Import of a Hugging Face folder that we exported, as it was or as transformers saved it again."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from gam_scale.checkpoint.shard import PARAM
from gam_scale.checkpoint.state import TrainState
from gam_scale.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from gam_scale.data.chat_template import read_template
from gam_scale.errors import UserError
from gam_scale.export.imported import Imported
from gam_scale.export.tokenizer_files import CHAT_TEMPLATE, tokenizer_of
from gam_scale.export.weights import load_safetensors
from gam_scale.strict import from_dict, option, read_json, section

MODEL_TYPE = "gam_scale"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TRAINER_STATE = "trainer_state.json"
PREFIX = "model."
"""Prefix of all parameter names there but the head's: a model with a head holds the rest as its
``model``."""
HEAD, ITS_HEAD = "head.weight", "lm_head.weight"


@dataclass
class Training:
    """How the model was trained, as recorded in the folder's config.json."""

    step: int = option(0, "steps done", at_least=0)
    seq_len: int = option(256, "data.seq_len", at_least=1)
    documents: Literal["reset", "concatenate"] = option("reset", "data.documents")
    recipe: TrainConfig = section(TrainConfig, "the section train")


def recipe_of(train: TrainConfig) -> TrainConfig:
    """Return the section without names of data sets, which are places on somebody's disk."""
    return replace(train, stages=[replace(stage, weights={}) for stage in train.stages])


def read_hf(folder: Path, tokenizer: Path | None) -> Imported:
    """Read what :func:`~gam_scale.export.hf.export_hf` wrote, or what transformers saved later.

    In a checkpoint of transformers' Trainer, the Trainer's steps are added to the earlier ones.

    Args:
        folder: holds ``config.json``.
        tokenizer: a tokenizer file to take instead of the folder's own.

    Raises:
        UserError: no such folder, another kind of model, or damaged weights.
    """
    path = folder / "config.json"
    config = read_json(path)
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type != MODEL_TYPE or not isinstance(config.get("model"), dict):
        raise UserError(
            f"{path} describes a model of type {model_type}; expected {MODEL_TYPE}, as "
            "tools/convert_checkpoint.py export --to hf writes it"
        )
    # transformers changes only its own keys, as when it resizes the embedding.
    changed = {"vocab_size": "vocab_size", "tied_head": "tie_word_embeddings"}
    changed = {ours: config[its] for ours, its in changed.items() if its in config}
    model = from_dict(ModelConfig, config["model"] | changed, f"{path}: model")
    training = from_dict(Training, config.get("training") or {}, f"{path}: training")
    template = folder / CHAT_TEMPLATE
    data = DataConfig(
        seq_len=training.seq_len,
        documents=training.documents,
        chat_template=read_template(template) if template.is_file() else "",
    )
    own, choice = tokenizer_of(folder)
    return Imported(
        source=folder,
        config=RunConfig(model, data, training.recipe),
        tensors={
            f"{PARAM}.{_our_name(name)}": tensor for name, tensor in _read_weights(folder).items()
        },
        state=TrainState(step=training.step + _trainer_steps(folder)),
        tokenizer=tokenizer or own,
        choice=None if tokenizer else choice,
    )


def _trainer_steps(folder: Path) -> int:
    """Return the number of steps that transformers' Trainer recorded, 0 without its file."""
    path = folder / TRAINER_STATE
    if not path.is_file():
        return 0
    state = read_json(path)
    steps = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(steps, int) or steps < 0:
        raise UserError(
            f"{path}: global_step is {steps!r}; expected the number of steps that Trainer wrote"
        )
    return steps


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if not (folder / WEIGHTS_INDEX).is_file():
        return load_safetensors(folder / WEIGHTS)
    # transformers cuts large models into several files.
    index = read_json(folder / WEIGHTS_INDEX)
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(map(_is_weights, files.values())):
        raise UserError(
            f"{folder / WEIGHTS_INDEX} has no weight_map of names to .safetensors files beside it; "
            "expected the index that transformers wrote"
        )
    names = sorted(set(files.values()))
    return {k: v for name in names for k, v in load_safetensors(folder / name).items()}


def _is_weights(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) is not None


def _our_name(name: str) -> str:
    return HEAD if name == ITS_HEAD else name.removeprefix(PREFIX)
