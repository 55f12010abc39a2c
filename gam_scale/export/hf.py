"""Export of a checkpoint to a Hugging Face folder, or to plain safetensors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.checkpoint.verify import CONFIG, TOKENIZER
from gam_scale.config.stages import stages_of
from gam_scale.data.chat_template import ChatTemplate
from gam_scale.data.tokenizer_file import TOKENIZER_JSON
from gam_scale.export.card import model_card
from gam_scale.export.folder import new_folder
from gam_scale.export.hf_import import (
    HEAD,
    ITS_HEAD,
    MODEL_TYPE,
    PREFIX,
    WEIGHTS,
    Training,
    recipe_of,
)
from gam_scale.export.sources import flat_sources
from gam_scale.export.tokenizer_files import TOKENIZATION, tokenizer_files
from gam_scale.files import write_bytes, write_json
from gam_scale.strict import to_dict

_CONFIGURATION = "configuration_gam_scale"
_MODELING = "modeling_gam_scale"


def export_hf(checkpoint: str | Path, out: Path, chat_template: str = "") -> None:
    """Write a folder that transformers loads with ``trust_remote_code=True``, without gam_scale.

    Args:
        checkpoint: run directory, or step-* folder.
        out: a new folder.
        chat_template: Jinja that replaces the run's own template.

    Raises:
        UserError: the checkpoint is missing or damaged, ``out`` is not empty, or the template
            cannot be read.
    """
    trained = load_trained(checkpoint)
    if chat_template:
        data = replace(trained.config.data, chat_template=chat_template)
        trained = replace(trained, config=replace(trained.config, data=data))
        ChatTemplate(chat_template, trained.tokenizer)  # raises if it cannot be read
    with new_folder(out) as folder:
        template = trained.config.data.chat_template
        files = tokenizer_files(trained.tokenizer, template, _longest(trained))
        files["README.md"] = model_card(trained, out.name).encode()
        own = () if TOKENIZER_JSON in files else (TOKENIZATION,)
        for name, text in flat_sources((_CONFIGURATION, _MODELING, *own)).items():
            files[name] = text.encode()
        for name, content in files.items():
            write_bytes(folder / name, content)
        write_json(folder / "config.json", _model_json(trained))
        write_json(folder / "generation_config.json", _special_ids(trained) | _stops(trained))
        _save_weights(folder / WEIGHTS, trained, _its_name)


def export_safetensors(checkpoint: str | Path, out: Path) -> None:
    """Write the weights under our own names in one file, with the run's config and the tokenizer.

    Raises:
        UserError: as for :func:`export_hf`.
    """
    trained = load_trained(checkpoint)
    with new_folder(out) as folder:
        write_json(folder / CONFIG, to_dict(trained.config))
        write_bytes(folder / TOKENIZER, trained.tokenizer.model_bytes)
        _save_weights(folder / WEIGHTS, trained, str)


def _its_name(name: str) -> str:
    return ITS_HEAD if name == HEAD else PREFIX + name


def _save_weights(path: Path, trained: Trained, name_of: Callable[[str], str]) -> None:
    tensors = {name_of(name): p.detach() for name, p in trained.model.named_parameters()}
    save_file(tensors, path, metadata={"format": "pt"})  # transformers requires a format
    path.chmod((path.parent / CONFIG).stat().st_mode)  # save_file lets only the owner read it


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
        "training": to_dict(
            Training(
                trained.step,
                _longest(trained),
                data.documents,
                recipe_of(trained.config.train),
            )
        ),
    }


def _longest(trained: Trained) -> int:
    """Return the longest sequence length trained on so far, since stages may differ in length."""
    stages = stages_of(trained.config)
    return max(s.seq_len for s in stages if s.first_step <= trained.step)


def _special_ids(trained: Trained) -> dict[str, int]:
    """Return the special ids. Where no id closes documents, eos is bos: the next one begins."""
    bos, eos = trained.tokenizer.bos_id, trained.tokenizer.eos_id
    end = bos if eos is None else eos
    return {"bos_token_id": bos, "eos_token_id": end, "pad_token_id": end}


def _stops(trained: Trained) -> dict[str, list[int]]:
    """Return all ids that end an answer, if the chat template adds some; else nothing."""
    template = trained.config.data.chat_template
    if not template:
        return {}
    stops = ChatTemplate(template, trained.tokenizer).stops
    return {"eos_token_id": sorted(stops)} if stops > trained.tokenizer.ends else {}
