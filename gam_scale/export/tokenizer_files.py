"""The files of a Hugging Face folder that hold its tokenizer, of any kind."""

import json
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.verify import TOKENIZER
from gam_scale.data.huggingface_tokenizer import HuggingFaceTokenizer
from gam_scale.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gam_scale.data.tokenizer import Choice, Tokenizer
from gam_scale.data.tokenizer_file import STORED, TOKENIZER_CONFIG, TOKENIZER_JSON, named_in
from gam_scale.data.tokenizer_form import is_json
from gam_scale.export.fast_tokenizer import fast_json

TOKENIZATION = "tokenization_gam_scale"
CHAT_TEMPLATE = "chat_template.jinja"

_FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
_OURS = {
    "tokenizer_class": "GAMScaleTokenizer",
    "auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.GAMScaleTokenizer", None]},
}


def tokenizer_files(
    tokenizer: Tokenizer, chat_template: str = "", longest: int | None = None
) -> dict[str, bytes]:
    """Return names and contents of the files from which transformers loads the tokenizer.

    If there is no ``tokenizer.json`` among them, the module :data:`TOKENIZATION` is needed too. As
    in training, bos opens a text, and the space that some tokenizers put before a text is left out.
    With a chat template, special tokens that a text spells out become ids, as apply_chat_template
    needs: transformers does not tell the template's from those in a message.

    Args:
        tokenizer: the model's tokenizer.
        chat_template: Jinja; empty: none.
        longest: tokens of the longest text that the model takes; None: not recorded.
    """
    files: dict[str, bytes] = {}
    if isinstance(tokenizer, SentencePieceTokenizer):
        content = fast_json(tokenizer)
        files[TOKENIZER] = tokenizer.model
    else:
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        content = tokenizer.json
    if content is not None:
        files[TOKENIZER_JSON] = _json(content | {"post_processor": _opening(tokenizer)})
    config = (_OURS if content is None else _FAST) | _names(tokenizer)
    config |= {"split_special_tokens": not chat_template, "padding_side": "left"}
    if longest is not None:
        config["model_max_length"] = longest
    files[TOKENIZER_CONFIG] = _json(config)
    if chat_template:
        files[CHAT_TEMPLATE] = chat_template.encode()
    if is_json(tokenizer.model_bytes):
        files[STORED] = tokenizer.model_bytes
    return files


def tokenizer_of(folder: Path) -> tuple[Path, Choice | None]:
    """Return the tokenizer file that our reader takes from a Hugging Face folder, and its use.

    If transformers saved the folder, only its own files are there: tokenizer.json, and the names of
    special tokens, in which eos differs from bos only if it closed the documents.
    """
    found = [name for name in (STORED, TOKENIZER) if (folder / name).is_file()]
    if STORED in found:
        return folder / STORED, None
    choice = _choice_of(folder)
    if not found and (folder / TOKENIZER_JSON).is_file():
        return folder / TOKENIZER_JSON, choice
    return folder / TOKENIZER, choice


def _choice_of(folder: Path) -> Choice | None:
    """Return the use that the names kept by transformers imply. A lossy tokenizer is accepted,
    since the text that it loses was lost in training too."""
    bos, eos = (named_in(folder, key) for key in ("bos_token", "eos_token"))
    return Choice(bos, None if eos == bos else eos, lossy=True) if bos else None


def _names(tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer) -> dict[str, Any]:
    bos, eos = tokenizer.names
    return {"bos_token": bos, "eos_token": eos or bos, "pad_token": eos or bos}


def _opening(tokenizer: HuggingFaceTokenizer | SentencePieceTokenizer) -> dict[str, Any]:
    """Return a post-processor that puts bos before a text, and nothing between two texts."""
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
