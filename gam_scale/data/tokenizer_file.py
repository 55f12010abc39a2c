"""Read tokenizers: a sentencepiece model, a tokenizer.json, or a folder of save_pretrained."""

import base64
from pathlib import Path

from gam_scale.data.huggingface_tokenizer import HuggingFaceTokenizer
from gam_scale.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gam_scale.data.tokenizer import Choice, Tokenizer
from gam_scale.data.tokenizer_form import HUGGINGFACE, Wrapped, is_json, unwrap
from gam_scale.errors import UserError
from gam_scale.files import read_regular
from gam_scale.strict import read_json

TOKENIZER_JSON, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
STORED = "gam_scale_tokenizer.json"
"""In an exported model's folder, a tokenizer that others made, in the form of checkpoints."""
_FILES = (TOKENIZER_JSON, "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_OUR_FILES = (STORED, "tokenizer.model", TOKENIZER_JSON)


def load_tokenizer(path: str | Path, choice: Choice | None = None) -> Tokenizer:
    """Read a tokenizer from a file, or from a folder that ``save_pretrained`` wrote.

    From the folder of a model exported from here, read the tokenizer that the model was trained
    with, not the files beside it that are for transformers.

    Args:
        path: a sentencepiece model, a ``tokenizer.json``, the ``tokenizer.model`` of a prepared set
            or checkpoint, or a folder, whose ``tokenizer_config.json`` names bos.
        choice: how a tokenizer that others made is used; None: as it was stored, or with the
            special tokens that it names itself.

    Raises:
        UserError: there is no such file, it is not a tokenizer, or the tokenizer loses text or
            lacks a special token.
    """
    path = Path(path)
    if path.is_dir():
        names = _OUR_FILES if _is_ours(path) else _FILES
        file = next((path / name for name in names if (path / name).is_file()), None)
        if file is None:
            raise UserError(f"{path}: has no tokenizer; expected one of {', '.join(_FILES)} in it")
        if file.name != STORED and (named := _bos_of_folder(path)):
            choice = (choice or Choice()).over(Choice(named))
        path = file
    return read_tokenizer(read_regular(path), str(path), choice)


def read_tokenizer(data: bytes, name: str = "tokenizer", choice: Choice | None = None) -> Tokenizer:
    """Make a tokenizer of its :attr:`~gam_scale.data.tokenizer.Tokenizer.model_bytes` or a file's.

    Raises:
        UserError: as for :func:`load_tokenizer`.
    """
    stored = data
    if is_json(stored):
        found = unwrap(stored, name)
        if not isinstance(found, Wrapped):
            return HuggingFaceTokenizer(found, name, choice or Choice())
        choice = (choice or Choice()).over(found.choice)
        if found.kind == HUGGINGFACE:
            return HuggingFaceTokenizer(found.model, name, choice)
        data = found.model.encode()
    try:
        data = base64.b64decode(data, validate=True) if is_json(stored) else data
        if not data:  # sentencepiece would only say on stderr that there is no model
            raise ValueError
        return SentencePieceTokenizer(data, name, choice)
    except (RuntimeError, ValueError):
        raise UserError(f"{name}: is not a sentencepiece model or is damaged") from None


def _is_ours(folder: Path) -> bool:
    """Return whether the folder holds a model that was exported from here."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == "gam_scale"


def _bos_of_folder(folder: Path) -> str | None:
    """Return the bos token that the folder's config names, or else its eos token."""
    return named_in(folder, "bos_token") or named_in(folder, "eos_token")


def named_in(folder: Path, key: str) -> str | None:
    """Return the special token under ``key`` in a folder's ``tokenizer_config.json``, if any.

    Raises:
        UserError: the file is not JSON.
    """
    if not (folder / TOKENIZER_CONFIG).is_file():
        return None
    config = read_json(folder / TOKENIZER_CONFIG)
    token = config.get(key) if isinstance(config, dict) else None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
