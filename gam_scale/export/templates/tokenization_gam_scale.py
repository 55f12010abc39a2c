"""GAM Scale's tokenizer, a sentencepiece model, as a Hugging Face tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import sentencepiece as spm
import transformers
from transformers import PreTrainedTokenizer

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(
        "this tokenizer needs transformers 5 or later (tried: 5.23.0 and 5.24.0); this is "
        f"{transformers.__version__}, which would leave out the token that opens a text"
    )

SPACE = "\u2581"  # what sentencepiece writes for a space inside its pieces


class GAMScaleTokenizer(PreTrainedTokenizer):
    """Tokenizer that gives GAM Scale's own ids, ``<s>`` first, and decodes every text exactly.

    ``<s>`` begins each document, so it also ends the document before it, and it pads. Spelled out
    in a text, it is three ordinary characters, unless ``split_special_tokens`` is switched off.
    """

    vocab_files_names = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        self.pieces = spm.SentencePieceProcessor(model_file=str(vocab_file))
        defaults = {
            "bos_token": "<s>",
            "eos_token": "<s>",
            "pad_token": "<s>",
            "unk_token": "<unk>",
            "padding_side": "left",
            "split_special_tokens": True,
            "special_tokens_pattern": "bos",
        }
        super().__init__(**(defaults | kwargs))

    @property
    def vocab_size(self) -> int:
        """Number of ids of the sentencepiece model."""
        return self.pieces.vocab_size()

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every piece."""
        pieces = {self.pieces.id_to_piece(i): i for i in range(self.vocab_size)}
        return pieces | self._added_tokens_encoder

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Return the text of pieces, with special tokens spelled out."""
        text = ""
        run: list[int] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text, run = text + self.pieces.decode(run) + token, []
            else:
                run.append(self.pieces.piece_to_id(token))
        return text + self.pieces.decode(run)

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copy the sentencepiece model into a folder."""
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        target = Path(save_directory) / (prefix + self.vocab_files_names["vocab_file"])
        if target.resolve() != Path(self.vocab_file).resolve():
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        # sentencepiece would turn U+2581 itself into a space, so its bytes are spelled out.
        mark = [f"<0x{byte:02X}>" for byte in SPACE.encode()]
        first, *rest = (self.pieces.encode(part, out_type=str) for part in text.split(SPACE))
        return first + [piece for part in rest for piece in mark + part]

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.id_to_piece(index) if index < self.vocab_size else self.unk_token
