"""The interface of tokenizers: text to ids and back, and the bytes that each id stands for."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from gam_scale.errors import UserError

SPACE = "\u2581"  # a space in the pieces of sentencepiece and of tokenizers in its style
# Long texts are encoded in stretches of this size or up to twice as long: sentencepiece takes up to
# 60 bytes of memory for each byte of a word, and text without spaces is one word.
STRETCH_CHARS = 1 << 16
TokenDtype = Literal["uint16", "uint32"]
"""The dtypes that hold token ids."""

_SPANS_SPACES = re.compile("[^ ] ")
# Texts that tokenizers tend to lose: spaces, line ends, composed characters, case, spaces before
# punctuation, U+2581 and special tokens spelled out in a text, and characters of all scripts.
_PROBES = (
    " a",
    "a  b ",
    "\t\na\r\n\n b",
    "\ufb01",
    "e\u0301",
    "Hello HELLO",
    "a ,b 's .",
    f"a{SPACE}b",
    "<s></s><unk><0x41><|endoftext|><bos><eos>[CLS]",
    "".join(map(chr, [*range(0x300), *range(0x300, 0xD800, 53), *range(0xE000, 0x10FFFF, 1021)])),
)


@dataclass(frozen=True)
class Choice:
    """How a tokenizer that others made is used.

    Attributes:
        bos: the special token that opens every document; None: the one that the tokenizer names.
        eos: a special token that also closes every document; None: the next document's bos does.
        lossy: accept a tokenizer that does not give text back exactly.
    """

    bos: str | None = None
    eos: str | None = None
    lossy: bool = False

    def over(self, other: "Choice") -> "Choice":
        """Return this choice, with what it leaves open filled in from ``other``."""
        return Choice(self.bos or other.bos, self.eos or other.eos, self.lossy or other.lossy)


class Tokenizer(ABC):
    """Converts text to ids and back.

    No text is encoded to special ids: a special token that a text spells out is encoded as ordinary
    letters. Lone surrogates are not valid in UTF-8 and raise UnicodeEncodeError.

    Attributes:
        model_bytes: all that :func:`~gam_scale.data.tokenizer_file.read_tokenizer` needs to make
            the tokenizer again.
        model_type: the kind of model, as manifests record it.
        vocab_size: one more than the largest id.
        bos_id: the id that opens every document.
        eos_id: the id that closes every document; None: the next document's bos does.
        exact: whether ``decode(encode(text)) == text`` for every text that UTF-8 can hold.
    """

    model_bytes: bytes
    model_type: str
    vocab_size: int
    bos_id: int
    eos_id: int | None = None
    exact: bool = True
    word_start: ClassVar[re.Pattern[str]] = re.compile(r"(?<=\S) (?=\S)")
    """Matches a space at which a text may be cut without cutting a word."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """Return the ids of ``text``, without bos, as an array of :attr:`dtype`."""

    @abstractmethod
    def _learned(self) -> Iterator[str]:
        """Yield the text of every piece that stands for text."""

    @abstractmethod
    def id_to_bytes(self, token: int) -> bytes:
        """Return the bytes of an id: perhaps part of a character; none for special ids."""

    @property
    @abstractmethod
    def special_ids(self) -> dict[str, int]:
        """The ids of the special tokens, by their names."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; skip special ids, turn bytes that are not UTF-8 to U+FFFD."""
        return b"".join(self.id_to_bytes(int(i)) for i in ids).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``, without bos."""
        return self.encode_array(text).tolist()

    def stretches(self, text: str) -> Iterator[str]:
        """Cut ``text`` into parts of at most ``2 * STRETCH_CHARS`` characters, encoded one by one.

        A cut is where a word begins, or else between two characters that no piece holds side by
        side; the ids are then those of the uncut text (for a unigram model cut within a word: up to
        ties). Without such a place, as in a long run of one letter, the cut is after
        ``2 * STRETCH_CHARS``, and the ids around it may differ from those of the uncut text.
        """
        start = 0
        while len(text) - start > 2 * STRETCH_CHARS:
            end = self._cut(text, start + STRETCH_CHARS, start + 2 * STRETCH_CHARS)
            yield text[start:end]
            start = end
        yield text[start:] if start else text

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each id, (vocab_size,) int32; 0 for special ids.

        Their sum over ``encode(text)``, which bits per byte need, is ``len(text.encode())``, or the
        length of the decoded text if the tokenizer is not :attr:`exact`.
        """
        return self._token_bytes

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        return np.array([len(self.id_to_bytes(i)) for i in range(self.vocab_size)], np.int32)

    @property
    def dtype(self) -> TokenDtype:
        """The dtype that holds an id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of :attr:`model_bytes`."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a document: its eos, if any, and the next document's bos."""
        return frozenset({self.bos_id} if self.eos_id is None else {self.bos_id, self.eos_id})

    def _cut(self, text: str, low: int, high: int) -> int:
        if self._whole_words and (word := self.word_start.search(text, low, high)):
            return word.start()
        return next((i for i in range(low, high) if text[i - 1 : i + 1] not in self._pairs), high)

    @cached_property
    def _whole_words(self) -> bool:
        """Whether no piece spans a word's end and the space after it."""
        return not any(map(_SPANS_SPACES.search, self._learned()))

    @cached_property
    def _pairs(self) -> frozenset[str]:
        """All pairs of characters that stand side by side in a piece."""
        return frozenset(
            piece[i : i + 2] for piece in self._learned() for i in range(len(piece) - 1)
        )


def check_exact(
    tokenizer: Tokenizer, name: str, *, lossy: bool, own_probes: Iterable[str] = ()
) -> bool:
    """Return whether decoding gives back every probe text as it was.

    Args:
        tokenizer: the tokenizer to check, whose special ids are set.
        name: the tokenizer's name in error messages.
        lossy: accept a tokenizer that loses text.
        own_probes: texts that this tokenizer might lose, besides those that any might.

    Raises:
        UserError: a text, which the message shows, is lost, and ``lossy`` is not set.
    """
    for probe in (*_PROBES, *own_probes):
        if tokenizer.decode(tokenizer.encode(probe)) == probe:
            continue
        if not lossy:
            text, back = _example(tokenizer, probe)
            raise UserError(
                f"{name}: does not give text back as it was: {text!r} comes back as {back!r}; "
                "expected a tokenizer that does, or --lossy, which takes this one"
            )
        return False
    return True


def _example(tokenizer: Tokenizer, probe: str) -> tuple[str, str]:
    """Return a short text that does not come back as it was, and what comes back instead."""
    for text in (*probe, probe) if len(probe) > 100 else (probe,):
        if (back := tokenizer.decode(tokenizer.encode(text))) != text:
            break
    return text[:40], back[:40]
