"""The files of a Hugging Face folder that hold its tokenizer, whichever kind it is."""

import json
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.verify import TOKENIZER
from gam_scale.data.huggingface_tokenizer import HuggingFaceTokenizer
from gam_scale.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import TOKENIZER_CONFIG, TOKENIZER_JSON
from gam_scale.data.tokenizer_form import is_json

TOKENIZATION = "tokenization_gam_scale"
STORED = "gam_scale_tokenizer.json"
"""A tokenizer that others made, as a checkpoint has it: for the way back."""

CHAT_TEMPLATE = "chat_template.jinja"

_OURS = {
    "tokenizer_class": "GAMScaleTokenizer",
    "auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.GAMScaleTokenizer", None]},
}


def tokenizer_files(tokenizer: Tokenizer, chat_template: str = "") -> dict[str, bytes]:
    """Names and contents of what transformers loads the tokenizer from.

    bos opens a text there too. The space that some put before a text stays out, as in training.
    With a chat template, special tokens that a text spells are ids, as apply_chat_template needs
    it: transformers does not tell those of the template from those of a message.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **_names(tokenizer)}
        files = {
            TOKENIZER_JSON: _json(tokenizer.json | {"post_processor": _opening(tokenizer)}),
            TOKENIZER_CONFIG: _json(config | {"clean_up_tokenization_spaces": False}),
        }
    else:
        assert isinstance(tokenizer, SentencePieceTokenizer)
        others = is_json(tokenizer.model_bytes)
        files = {
            TOKENIZER: tokenizer.model,
            TOKENIZER_CONFIG: _json(
                _OURS
                | (_names(tokenizer) if others else {})
                | ({"split_special_tokens": False} if chat_template else {})
            ),
        }
    if chat_template:
        files[CHAT_TEMPLATE] = chat_template.encode()
    if is_json(tokenizer.model_bytes):
        files[STORED] = tokenizer.model_bytes
    return files


def tokenizer_of(folder: Path) -> Path:
    """What our own reader takes of a Hugging Face folder: a file, or itself with a tokenizer.json.

    transformers saves its own files alone, which do not say whether eos closed the documents.
    """
    found = [name for name in (STORED, TOKENIZER) if (folder / name).is_file()]
    if not found and (folder / TOKENIZER_JSON).is_file():
        return folder
    return folder / (found[0] if found else TOKENIZER)


def _names(tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer) -> dict[str, Any]:
    bos, eos = tokenizer.names
    return {"bos_token": bos, "eos_token": eos or bos, "pad_token": eos or bos}


def _opening(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """bos before a text, as transformers adds it; nothing between two."""
    bos, _ = tokenizer.names
    one, two = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, one],
        "pair": [special, one, two],
        "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
    }


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, ensure_ascii=False, indent=2) + "\n").encode()
