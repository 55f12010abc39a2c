"""Conversion of a sentencepiece model to a ``tokenizer.json`` that gives the same ids."""

import json
from collections.abc import Iterator
from typing import Any

import sentencepiece as spm

from gam_scale.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gam_scale.data.tokenizer import SPACE

# Texts to compare ids on: letters of many scripts, control characters, spaces, emoji; special
# tokens that are spelled out.
_RANGES = (range(0x300), range(0x300, 0xD800, 53), range(0xE000, 0x10FFFF, 1021))
_CHARACTERS = "".join(chr(code) for codes in _RANGES for code in codes)
_SPELLED = f"<s></s><unk><0x41> a{SPACE}b {SPACE} <|endoftext|>"
_PIECES_AT_A_TIME = 500


def fast_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """Return the object of a ``tokenizer.json`` that gives the ids of ``tokenizer``, or None.

    Byte-pair models that spell unknown characters in bytes and change no text have one: those that
    train_tokenizer makes, and Llama 2's kind. Unigram models have none, since they resolve ties by
    the rounding of sums, which ``tokenizers`` computes in another precision. The object's pieces
    have plain spaces, so that U+2581 in a text is spelled in bytes, as it is by ``tokenizer``.

    The ids are compared on texts with all pieces and characters of all scripts. This needs the
    package ``tokenizers``; without it the result is None.
    """
    try:
        import tokenizers
    except ImportError:
        return None
    pieces = _Pieces(spm.SentencePieceProcessor(model_proto=tokenizer.model))
    if tokenizer.model_type != "bpe" or not pieces.spell_all_bytes():
        return None
    content = pieces.json()
    model = tokenizers.Tokenizer.from_str(json.dumps(content))
    model.encode_special_tokens = True
    for text in pieces.probes():
        if model.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            return None
    return content


class _Pieces:
    """The pieces of a sentencepiece model.

    Attributes:
        texts: by id, the text that a piece stands for; for special pieces and bytes, the name.
        learned: the ids of pieces that stand for text.
        special: the ids of pieces that stand for no text.
    """

    def __init__(self, model: spm.SentencePieceProcessor) -> None:
        ids = range(model.vocab_size())
        self._model = model
        self.special = [i for i in ids if model.is_control(i) or model.is_unknown(i)]
        named = {i for i in ids if model.is_byte(i)} | set(self.special)
        self.learned = [i for i in ids if i not in named]
        names = map(model.id_to_piece, ids)
        self.texts = [n if i in named else n.replace(SPACE, " ") for i, n in enumerate(names)]

    def spell_all_bytes(self) -> bool:
        """Return whether there is a piece for every byte, and no two pieces have the same text."""
        names = {self.texts[i] for i in range(len(self.texts)) if self._model.is_byte(i)}
        return len(names) == 256 and len(set(self.texts)) == len(self.texts)

    def json(self) -> dict[str, Any]:
        """Return the object of a tokenizer.json."""
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_special(i, self.texts[i]) for i in self.special],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": self.texts[self._model.unk_id()],
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {text: i for i, text in enumerate(self.texts)},
                "merges": list(self._merges()),
            },
        }

    def _merges(self) -> Iterator[list[str]]:
        """Yield pairs of pieces that join to a third piece, the best first. Both libraries merge
        the best pair in a text first, and of equal pairs the leftmost."""
        ids = {self.texts[i]: i for i in self.learned}
        for i in sorted(self.learned, key=self._model.get_score, reverse=True):
            text = self.texts[i]
            cuts = [(text[:k], text[k:]) for k in range(1, len(text))]
            made = [(a, b) for a, b in cuts if a in ids and b in ids]
            yield from (list(pair) for pair in sorted(made, key=lambda p: (ids[p[0]], ids[p[1]])))

    def probes(self) -> Iterator[str]:
        """Yield texts with characters of all scripts, and with every piece next to others."""
        yield from (_SPELLED, *(_CHARACTERS[i:] for i in range(0, len(_CHARACTERS), 1000)))
        for first in range(0, len(self.learned), _PIECES_AT_A_TIME):
            some = [self.texts[i] for i in self.learned[first : first + _PIECES_AT_A_TIME]]
            yield from ("".join(some), "".join(reversed(some)), "".join(map(str.swapcase, some)))


def _special(token: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, "special": True} | flags
