"""What a tokenizer is to the rest: text to ids and back, and the bytes that each id stands for."""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from gam_scale.errors import UserError

SPACE = "\u2581"  # what sentencepiece, and what is made after it, writes for a space in its pieces
# Encoded at a time: sentencepiece takes up to 60 bytes of memory for each byte of a word, and text
# without spaces is one word.
STRETCH_CHARS = 1 << 16
TokenDtype = Literal["uint16", "uint32"]
"""What holds a token id."""

_SPANS_SPACES = re.compile("[^ ] ")
# What tokenizers lose: spaces, line ends, composed characters, case, marks and special tokens that
# are spelled out in a text, and characters of any script, of two to four bytes.
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
        eos: a special token that closes every document too; None: the next one's opening does.
        lossy: take a tokenizer that does not give text back exactly.
    """

    bos: str | None = None
    eos: str | None = None
    lossy: bool = False

    def over(self, other: "Choice") -> "Choice":
        """This one, and what it leaves open as ``other`` has it."""
        return Choice(self.bos or other.bos, self.eos or other.eos, self.lossy or other.lossy)


class Tokenizer(ABC):
    """Text to ids and back.

    Special ids are never the ids of a text: a special token that is spelled out in one is letters
    like any others. Lone surrogates are not text in UTF-8's sense and raise UnicodeEncodeError.

    Attributes:
        model_bytes: all that it is made of, for
            :func:`~gam_scale.data.tokenizer_file.read_tokenizer`.
        model_type: the kind of its model, as manifests have it.
        vocab_size: one more than the largest id.
        bos_id: opens every document.
        eos_id: closes every document; None: the next one's opening does.
        exact: ``decode(encode(text)) == text`` for every text that UTF-8 can hold.
    """

    model_bytes: bytes
    model_type: str
    vocab_size: int
    bos_id: int
    eos_id: int | None = None
    exact: bool = True
    word_start: ClassVar[re.Pattern[str]] = re.compile(r"(?<=\S) (?=\S)")
    """The space where a text may be cut, as far as words go."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """The ids of ``text``, without bos, as an array of :attr:`dtype`."""

    @abstractmethod
    def _learned(self) -> Iterator[str]:
        """The text of every piece that stands for some."""

    @abstractmethod
    def id_to_bytes(self, token: int) -> bytes:
        """What an id stands for: part of a character perhaps, nothing for special ids."""

    @property
    @abstractmethod
    def special_ids(self) -> dict[str, int]:
        """The ids of special tokens, by the names that they have."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special ids skipped; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.id_to_bytes(int(i)) for i in ids).decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without bos."""
        return self.encode_array(text).tolist()

    def stretches(self, text: str) -> Iterator[str]:
        """``text`` in parts of at most ``2 * STRETCH_CHARS`` characters, to be encoded one by one.

        Cut where a word begins, else between two characters that no piece holds side by side:
        there the ids are those of the uncut text (of a unigram model within a word, up to ties).
        Where there is no such place either, as in a long run of one letter, the cut is after
        ``2 * STRETCH_CHARS`` and the ids around it may be others than the model's own.
        """
        start = 0
        while len(text) - start > 2 * STRETCH_CHARS:
            end = self._cut(text, start + STRETCH_CHARS, start + 2 * STRETCH_CHARS)
            yield text[start:end]
            start = end
        yield text[start:] if start else text

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, (vocab_size,) int32; 0 for special ids.

        Summed over ``encode(text)`` they give ``len(text.encode())``, or the length of what comes
        back of the text where that is not :attr:`exact`: what bits per byte needs.
        """
        return self._token_bytes

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        return np.array([len(self.id_to_bytes(i)) for i in range(self.vocab_size)], np.int32)

    @property
    def dtype(self) -> TokenDtype:
        """What holds an id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of :attr:`model_bytes`."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @property
    def ends(self) -> frozenset[int]:
        """The ids that end a document: its own end, and the next one's opening."""
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
        """Any two characters that stand side by side in a piece."""
        return frozenset(
            piece[i : i + 2] for piece in self._learned() for i in range(len(piece) - 1)
        )


def check_exact(
    tokenizer: Tokenizer, name: str, *, lossy: bool, own_probes: Iterable[str] = ()
) -> bool:
    """Whether every text comes back as it was.

    Args:
        tokenizer: its bos is known.
        name: for messages.
        lossy: take it where they do not.
        own_probes: texts that this one might lose, besides those that any might.

    Raises:
        UserError: one does not, which it shows, and ``lossy`` is not set.
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
    """A short text that does not come back, and what does."""
    for text in (*probe, probe) if len(probe) > 100 else (probe,):
        if (back := tokenizer.decode(tokenizer.encode(text))) != text:
            break
    return text[:40], back[:40]
