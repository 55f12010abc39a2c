"""A sentencepiece model as a ``tokenizer.json``, where that gives the same ids."""

import json
from collections.abc import Iterator
from typing import Any

import sentencepiece as spm

from gam_scale.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gam_scale.data.tokenizer import SPACE

# Letters of many scripts, control characters, spaces, emoji; special tokens that are spelled out.
_RANGES = (range(0x300), range(0x300, 0xD800, 53), range(0xE000, 0x10FFFF, 1021))
_CHARACTERS = "".join(chr(code) for codes in _RANGES for code in codes)
_SPELLED = f"<s></s><unk><0x41> a{SPACE}b {SPACE} <|endoftext|>"
_PIECES_AT_A_TIME = 500


def fast_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any] | None:
    """The object of a ``tokenizer.json`` with the ids of ``tokenizer``; None: there is none.

    There is for models of byte pairs that spell unknown characters in bytes and change no text:
    what train_tokenizer makes, and Llama 2's kind. Unigram models resolve ties by the rounding of
    their sums, which ``tokenizers`` does in another precision. A space is a space in the pieces
    there, so that U+2581 in a text is spelled in bytes, as here.

    The ids are compared on a text of all pieces and characters of all scripts, for which the
    package ``tokenizers`` is needed; without it there is None, too.
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
    """What a sentencepiece model consists of.

    Attributes:
        texts: what each piece stands for, or, of special ones and bytes, its name; by id.
        learned: the ids of pieces that stand for text.
        special: the ids of those that stand for none.
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
        """Whether there is a piece for every byte, and no two pieces of one text."""
        names = {self.texts[i] for i in range(len(self.texts)) if self._model.is_byte(i)}
        return len(names) == 256 and len(set(self.texts)) == len(self.texts)

    def json(self) -> dict[str, Any]:
        """The object of a tokenizer.json."""
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
        """Pairs of pieces that make a third, the best first: there as here the best pair of a text
        is merged first, the leftmost of equals."""
        ids = {self.texts[i]: i for i in self.learned}
        for i in sorted(self.learned, key=self._model.get_score, reverse=True):
            text = self.texts[i]
            cuts = [(text[:k], text[k:]) for k in range(1, len(text))]
            made = [(a, b) for a, b in cuts if a in ids and b in ids]
            yield from (list(pair) for pair in sorted(made, key=lambda p: (ids[p[0]], ids[p[1]])))

    def probes(self) -> Iterator[str]:
        """Texts that have every piece in them, next to others."""
        yield from (_SPELLED, *(_CHARACTERS[i:] for i in range(0, len(_CHARACTERS), 1000)))
        for first in range(0, len(self.learned), _PIECES_AT_A_TIME):
            some = [self.texts[i] for i in self.learned[first : first + _PIECES_AT_A_TIME]]
            yield from ("".join(some), "".join(reversed(some)), "".join(map(str.swapcase, some)))


def _special(token: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": name, "special": True} | flags
