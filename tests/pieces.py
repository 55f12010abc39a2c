"""Sentencepiece models as other people train them: byte pairs, all text given back."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece as spm


def train_pieces(folder: Path, texts: Sequence[str], name: str = "m", **settings: object) -> Path:
    """A model in a file of that name, of the kind of Llama 2's but for ``settings``."""
    usual = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "minloglevel": 2,
    }
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(folder / name), **usual | settings
    )
    return folder / f"{name}.model"
