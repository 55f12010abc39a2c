"""Tokenizers of Hugging Face's ``tokenizers``, either byte-level or in sentencepiece's style.

GPT-2, Llama 3 and Qwen are byte-level: a piece is spelled in 256 letters that stand for bytes.
Llama 2 and Gemma follow sentencepiece: U+2581 in a piece is a space, the piece ``<0xE2>`` a byte.
"""

import json
import re
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np

from gam_scale.data.tokenizer import SPACE, Choice, Tokenizer, check_exact
from gam_scale.data.tokenizer_form import HUGGINGFACE, wrap
from gam_scale.errors import UserError, one_line

# Usual names of the token that opens a document, tried in this order if nothing else names it.
USUAL_BOS = ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>", "<|bos|>", "[BOS]")
MOST_IDS = 1 << 24  # no real vocabulary has a tenth of this
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFaceTokenizer(Tokenizer):
    """The tokenizer that a ``tokenizer.json`` describes.

    The space that some tokenizers put before a text is removed, here and in :attr:`json`: bos opens
    every document, and a text that begins with a space has to differ from one that does not.
    Templates that add special tokens, truncation and padding are removed too.

    Attributes:
        json: the tokenizer as it is used, in the form of a ``tokenizer.json``.
        names: the special tokens that open and, if any, close a document.

    Args:
        content: the object of the ``tokenizer.json``.
        name: the tokenizer's name in error messages.
        choice: how the tokenizer is used.

    Raises:
        UserError: the tokenizer is of another kind, loses text or lacks a special token.
    """

    def __init__(self, content: dict[str, Any], name: str, choice: Choice):
        self.json = _without_prefix(content)
        self._model = self._read(name)
        self._bytewise = _is_bytewise(self.json)
        if not self._bytewise and not _has_spaces(self.json) and not _spells_bytes(self.json):
            raise UserError(
                f"{name}: is of a kind whose ids do not say which bytes they stand for "
                f"({content['model'].get('type')}); expected byte-level pieces as GPT-2's, or "
                f"pieces with {SPACE} for a space as Llama's and Gemma's"
            )
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=0) + 1
        if self.vocab_size > MOST_IDS:
            raise UserError(f"{name}: has id {self.vocab_size - 1}; expected less than {MOST_IDS}")
        self.model_type = f"huggingface {str(content['model'].get('type', 'bpe')).lower()}"
        self._added = self._model.get_added_tokens_decoder()
        self._pieces = {i: piece for piece, i in vocabulary.items()}
        self._mark = [vocabulary.get(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        bos = self._special(name, "--bos", choice.bos or self._usual(name))
        self.bos_id = vocabulary[bos]
        if choice.eos is not None:
            self.eos_id = vocabulary[self._special(name, "--eos", choice.eos)]
        self.names = (bos, choice.eos)
        self.model_bytes = wrap(HUGGINGFACE, self.names, choice.lossy, self.json)
        self.exact = check_exact(self, name, lossy=choice.lossy, own_probes=self._own_probes())

    def encode_array(self, text: str) -> np.ndarray:
        text.encode()  # a lone surrogate fails here
        ids: list[int] = []
        for part in self.stretches(text):
            ids += self._encode(part)
        return np.array(ids, self.dtype)

    def id_to_bytes(self, token: int) -> bytes:
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else added.content.encode()
        piece = self._pieces.get(token, "")
        if self._bytewise:
            return bytes(_LETTERS[letter] for letter in piece if letter in _LETTERS)
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        if piece == self.json["model"].get("unk_token"):
            return b""
        return piece.replace(SPACE, " ").encode()

    @property
    def special_ids(self) -> dict[str, int]:
        named = {t.content: i for i, t in self._added.items()}
        return {name: named[name] for name in self._specials}

    def _learned(self) -> Iterator[str]:
        ids = (i for i in self._pieces if i not in self._added or not self._added[i].special)
        return (self.id_to_bytes(i).decode("utf-8", "ignore") for i in ids)

    def _encode(self, text: str) -> list[int]:
        if self._bytewise or SPACE not in text or None in self._mark:
            return self._ids(text)
        # U+2581 in the text would be decoded as a space, so it is spelled in bytes.
        first, *rest = map(self._ids, text.split(SPACE))
        return first + [i for part in rest for i in (*self._mark, *part)]

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids if text else []

    def _read(self, name: str) -> Any:
        try:
            model = _tokenizers(name).Tokenizer.from_str(json.dumps(self.json))
        except UserError:
            raise
        except Exception as error:  # tokenizers exports none of the kinds that it raises
            raise UserError(
                f"{name}: cannot be read by tokenizers ({one_line(str(error))}); expected a "
                "tokenizer.json that it wrote"
            ) from None
        model.encode_special_tokens = True  # "<s>" in a text is three letters
        return model

    def _own_probes(self) -> Iterator[str]:
        """Yield texts that this tokenizer in particular might lose.

        These are added tokens, which may swallow the spaces around them, and what the normalizer
        replaces. Special added tokens in a text count as letters, but may be pieces of the model.
        """
        for added in self._added.values():
            yield from (added.content, f"x {added.content} y")
        for part in _parts(self.json.get("normalizer")):
            pattern = part.get("pattern")
            if part.get("type") == "Replace" and isinstance(pattern, dict):
                yield str(pattern.get("String", ""))

    def _usual(self, name: str) -> str:
        """Return the token that opens a document: one of a usual name, or the only special one."""
        special = self._specials
        found = next((token for token in USUAL_BOS if token in special), None)
        if found is None and len(special) == 1:
            (found,) = special
        if found is None:
            raise UserError(
                f"{name}: does not say which token opens a document; expected --bos as one of: "
                f"{', '.join(special) or 'none, as it has no special token'}"
            )
        return found

    def _special(self, name: str, flag: str, token: str) -> str:
        if token not in self._specials:
            raise UserError(
                f"{name}: has no special token {token!r}; expected {flag} as one of: "
                f"{', '.join(self._specials)}"
            )
        return token

    @cached_property
    def _specials(self) -> list[str]:
        unknown = self.json["model"].get("unk_token")
        contents = (t.content for _, t in sorted(self._added.items()) if t.special)
        return [content for content in contents if content != unknown]


def _tokenizers(name: str) -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            f"{name}: needs the package tokenizers; pip install 'gam-scale[hub]' brings it"
        ) from None
    return tokenizers


def _letters() -> dict[str, int]:
    """Return the byte that each letter of byte-level pieces stands for, as in GPT-2."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


_LETTERS = _letters()


def _without_prefix(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json without the parts that add to a text or truncate it."""
    kept = dict(content, truncation=None, padding=None, post_processor=None)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        kept[part] = _no_prefix(content.get(part))
    return kept


def _no_prefix(part: Any) -> Any:
    """Return a normalizer, pre_tokenizer or decoder without its prefix space; None: drop it."""
    if not isinstance(part, dict):
        return part
    part, kind = dict(part), part.get("type")
    if kind == "Prepend" or (kind == "Strip" and part.get("content") == " "):
        return None  # a Strip with a content is a decoder's and takes Prepend's space away
    if kind == "Metaspace":
        part["prepend_scheme"] = "never"
        part.pop("add_prefix_space", None)
    elif kind == "ByteLevel":
        part["add_prefix_space"] = False
    for inner in ("normalizers", "pretokenizers", "decoders"):
        if isinstance(part.get(inner), list):
            part[inner] = [p for p in map(_no_prefix, part[inner]) if p is not None]
    return part


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Yield a normalizer, pre_tokenizer or decoder and, if it is a sequence, its members."""
    if isinstance(part, dict):
        yield part
        for inner in ("normalizers", "pretokenizers", "decoders"):
            for each in part.get(inner) or ():
                yield from _parts(each)


def _is_bytewise(content: dict[str, Any]) -> bool:
    return any(part.get("type") == "ByteLevel" for part in _parts(content.get("decoder")))


def _spells_bytes(content: dict[str, Any]) -> bool:
    """Return whether ``<0xE2>`` is a byte, as in our exports, whose pieces hold plain spaces."""
    return any(part.get("type") == "ByteFallback" for part in _parts(content.get("decoder")))


def _has_spaces(content: dict[str, Any]) -> bool:
    """Return whether U+2581 in a piece is a space."""
    return any(
        part.get("type") == "Metaspace"
        or (part.get("type") == "Replace" and part.get("pattern") == {"String": SPACE})
        for part in _parts(content.get("decoder"))
    )
