"""SentencePiece models as others train them: byte-pair encoding that restores any text."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece as spm


def train_pieces(folder: Path, texts: Sequence[str], name: str = "m", **settings: object) -> Path:
    """Train a model like Llama 2's, but for ``settings``; return its file ``name``.model."""
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
