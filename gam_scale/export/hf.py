"""Hugging Face folders: written from a checkpoint, and read back."""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import Tensor

from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.checkpoint.shard import PARAM
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.verify import CONFIG, TOKENIZER
from gam_scale.config import DataConfig, ModelConfig, RunConfig
from gam_scale.config.stages import stages_of
from gam_scale.data.chat_template import ChatTemplate
from gam_scale.data.tokenizer_file import TOKENIZER_JSON
from gam_scale.errors import UserError
from gam_scale.export.folder import new_folder
from gam_scale.export.imported import Imported
from gam_scale.export.sources import flat_sources
from gam_scale.export.tokenizer_files import (
    CHAT_TEMPLATE,
    TOKENIZATION,
    tokenizer_files,
    tokenizer_of,
)
from gam_scale.export.weights import load_safetensors
from gam_scale.files import read_regular, write_bytes, write_json
from gam_scale.strict import from_dict, option, read_json, to_dict

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MODEL_TYPE = "gam_scale"
_PREFIX = "model."
"""Our names start with it there, but the head's: what has a head holds the rest as its ``model``.
"""
_HEAD, _ITS_HEAD = "head.weight", "lm_head.weight"

_CONFIGURATION = "configuration_gam_scale"
_MODELING = "modeling_gam_scale"


@dataclass
class _Training:
    """How the model was trained, as the folder's config.json notes it."""

    step: int = option(0, "steps done", at_least=0)
    seq_len: int = option(256, "data.seq_len", at_least=1)
    documents: Literal["reset", "concatenate"] = option("reset", "data.documents")


def export_hf(checkpoint: str | Path, out: Path) -> None:
    """Write what transformers loads with ``trust_remote_code=True``, without gam_scale installed.

    Raises:
        UserError: no checkpoint there, a damaged one, or ``out`` is not empty.
    """
    trained = load_trained(checkpoint)
    with new_folder(out) as folder:
        template = trained.config.data.chat_template
        files = tokenizer_files(trained.tokenizer, template, _longest(trained))
        own = () if TOKENIZER_JSON in files else (TOKENIZATION,)
        for name, text in flat_sources((_CONFIGURATION, _MODELING, *own)).items():
            files[name] = text.encode()
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_json(folder / "config.json", _model_json(trained))
        write_json(folder / "generation_config.json", _special_ids(trained) | _stops(trained))
        _save_weights(folder / WEIGHTS, trained, _its_name)


def export_safetensors(checkpoint: str | Path, out: Path) -> None:
    """Write the weights by our names in one file, with the run's config and the tokenizer.

    Raises:
        UserError: as for :func:`export_hf`.
    """
    trained = load_trained(checkpoint)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, to_dict(trained.config))
        write_bytes(folder / TOKENIZER, trained.tokenizer.model_bytes)
        _save_weights(folder / WEIGHTS, trained, str)


def read_hf(folder: Path, tokenizer: Path | None) -> Imported:
    """What :func:`export_hf` wrote, or transformers saved after training it further.

    Args:
        tokenizer: another model file than the folder's own.

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
    training = from_dict(_Training, config.get("training") or {}, f"{path}: training")
    template = folder / CHAT_TEMPLATE
    data = DataConfig(
        seq_len=training.seq_len,
        documents=training.documents,
        chat_template=read_regular(template).decode() if template.is_file() else "",
    )
    own, choice = tokenizer_of(folder)
    return Imported(
        source=folder,
        config=RunConfig(model, data),
        tensors={
            f"{PARAM}.{_our_name(name)}": tensor for name, tensor in _read_weights(folder).items()
        },
        state=TrainState(step=training.step),
        tokenizer=tokenizer or own,
        choice=None if tokenizer else choice,
    )


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


def _its_name(name: str) -> str:
    return _ITS_HEAD if name == _HEAD else _PREFIX + name


def _our_name(name: str) -> str:
    return _HEAD if name == _ITS_HEAD else name.removeprefix(_PREFIX)


def _save_weights(path: Path, trained: Trained, name_of: Callable[[str], str]) -> None:
    tensors = {name_of(name): p.detach() for name, p in trained.model.named_parameters()}
    save_file(tensors, path, metadata={"format": "pt"})  # transformers wants to be told
    path.chmod((path.parent / CONFIG).stat().st_mode)  # it is written for its owner alone


def _model_json(trained: Trained) -> dict[str, Any]:
    model, data = trained.config.model, trained.config.data
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["GAMScaleForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{_CONFIGURATION}.GAMScaleConfig",
            "AutoModel": f"{_MODELING}.GAMScaleModel",
            "AutoModelForCausalLM": f"{_MODELING}.GAMScaleForCausalLM",
            "AutoModelForSequenceClassification": f"{_MODELING}.GAMScaleForSequenceClassification",
        },
        "dtype": "float32",
        **_special_ids(trained),
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_head,
        "model": to_dict(model),
        "training": asdict(_Training(trained.step, _longest(trained), data.documents)),
    }


def _longest(trained: Trained) -> int:
    """Tokens of the longest sequences so far: stages may have lengths of their own."""
    stages = stages_of(trained.config)
    return max(s.seq_len for s in stages if s.first_step <= trained.step)


def _special_ids(trained: Trained) -> dict[str, int]:
    """A document ends where the next one begins, unless an id closes it."""
    bos, eos = trained.tokenizer.bos_id, trained.tokenizer.eos_id
    end = bos if eos is None else eos
    return {"bos_token_id": bos, "eos_token_id": end, "pad_token_id": end}


def _stops(trained: Trained) -> dict[str, list[int]]:
    """The ids that end an answer, where the chat template has one of its own for that."""
    template = trained.config.data.chat_template
    if not template:
        return {}
    stops = ChatTemplate(template, trained.tokenizer).stops
    return {"eos_token_id": sorted(stops)} if stops > trained.tokenizer.ends else {}
