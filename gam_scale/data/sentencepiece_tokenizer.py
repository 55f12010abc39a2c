"""Tokenizers of sentencepiece: those trained here, and any other model."""

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import numpy as np
import sentencepiece as spm

from gam_scale.data.tokenizer import SPACE, Choice, Tokenizer, check_exact
from gam_scale.data.tokenizer_form import SENTENCEPIECE, wrap
from gam_scale.errors import UserError

UNK_ID, BOS_ID = 0, 1
SPECIAL_PIECES = 2 + 256  # <unk>, <s>, then one piece per byte
CACHED_WORDS = 1 << 18  # about 60 MB
CACHED_CHARS = 64  # longer words hardly recur

# Text is cut into words; each is encoded once and looked up when it recurs, which is two to four
# times faster than sentencepiece on running text. The ids are the same, because no piece that
# sentencepiece learns spans a word's end and the space after it, or an ASCII letter and another
# ASCII character. A word includes the spaces before it; a word with a non-ASCII character
# extends to the next space.
_WORDS = re.compile(
    r" *(?:[A-Za-z]++(?![^\0-\x7f])|[^A-Za-z \x80-\U0010ffff]++(?![^\0-\x7f])|[^ ]+)| +"
)
_SPANS_WORDS = re.compile(
    r"[^ ] |[A-Za-z][^A-Za-z \x80-\U0010ffff]|[^A-Za-z \x80-\U0010ffff][A-Za-z]"
)
# A model file is a protobuf message. Where a submessage occurs twice, its later settings hold; this
# one, appended, is field 3 (normalisation), whose own field 3 (add_dummy_prefix) it sets to false.
_NO_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model.

    A model trained here has the ids 0 ``<unk>`` (never produced), 1 ``<s>`` (document boundary),
    256 bytes, then the pieces, and is stored as its plain model file. Other models keep their
    special ids. The space that many put before a text is removed: bos opens every document, and a
    text that begins with a space has to differ from one that does not.

    Attributes:
        model: the model file's content as it is used.

    Args:
        model: the model file's content.
        name: the model's name in error messages.
        choice: how the model is used; None: with the special tokens that it names itself.

    Raises:
        UserError: the model loses text or lacks a special token.
        RuntimeError: the content is no sentencepiece model.
    """

    _by_words: bool
    word_start = re.compile(r"(?<=[^ ]) ")

    def __init__(self, model: bytes, name: str = "tokenizer", choice: Choice | None = None):
        self._read(model)
        if not self._is_ours(choice):
            choice = choice or Choice()
            if "".join(self._model.encode("a", out_type=str)).startswith(SPACE):
                self._read(model + _NO_DUMMY_PREFIX)
            self.bos_id = self._special_id(name, "--bos", choice.bos)
            if choice.eos is not None:
                self.eos_id = self._special_id(name, "--eos", choice.eos)
            # By words only once it is known that the model does nothing to the ends of a text.
            by_words, self._by_words = self._by_words, False
            self.exact = check_exact(self, name, lossy=choice.lossy)
            self._by_words = by_words and self.exact
            content = base64.b64encode(model).decode()
            self.model_bytes = wrap(SENTENCEPIECE, self.names, choice.lossy, content)

    def _read(self, model: bytes) -> None:
        self.model = self.model_bytes = model
        self._model = spm.SentencePieceProcessor(model_proto=model)
        self.vocab_size = self._model.vocab_size()
        self._pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        self._by_words = not any(map(_SPANS_WORDS.search, self._learned()))
        self._words = _WordCache(self._encode_word)
        scores = [self._model.get_score(i) for i in range(self.vocab_size)]
        # A piece's score is its rank in bpe, a log-probability in unigram. The file names the type
        # too, but reading it takes protobuf, which a plain installation lacks.
        whole = all(score.is_integer() for score in scores)
        self.model_type = "bpe" if whole else "unigram"

    def encode_array(self, text: str) -> np.ndarray:
        words = _WORDS.findall if self._by_words else _all
        parts = (
            b"".join(map(self._words.__getitem__, words(part))) for part in self.stretches(text)
        )
        return np.frombuffer(b"".join(parts), self.dtype)

    def _learned(self) -> Iterator[str]:
        pieces = enumerate(self._pieces)
        return (p.replace(SPACE, " ") for i, p in pieces if not self._is_spelled(i))

    def decode(self, ids: Iterable[int]) -> str:
        special = self._special
        return self._model.decode([int(i) for i in ids if int(i) not in special])

    def id_to_bytes(self, token: int) -> bytes:
        if token in self._special:
            return b""
        if self._model.is_byte(token):
            return bytes([int(self._pieces[token][3:5], 16)])  # spelled <0xE2>
        return self._pieces[token].replace(SPACE, " ").encode()

    @cached_property
    def _special(self) -> frozenset[int]:
        model = self._model
        return frozenset(
            i for i in range(self.vocab_size) if model.is_control(i) or model.is_unknown(i)
        )

    @property
    def special_ids(self) -> dict[str, int]:
        control = (i for i in range(self.vocab_size) if self._model.is_control(i))
        return {self._pieces[i]: i for i in control}

    def _is_spelled(self, token: int) -> bool:
        """Return whether a piece's letters are a name, not text: a special or a byte piece."""
        model = self._model
        return model.is_control(token) or model.is_unknown(token) or model.is_byte(token)

    @cached_property
    def _space_ids(self) -> list[int]:
        """The byte pieces of U+2581 itself, which sentencepiece would turn into a space."""
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def _encode_word(self, word: str) -> bytes:
        word.encode()  # a lone surrogate fails here, where the error still names it
        ids, *rest = (self._model.encode_as_ids(part) for part in word.split(SPACE))
        for part in rest:
            ids = [*ids, *self._space_ids, *part]
        return np.array(ids, self.dtype).tobytes()

    def _is_ours(self, choice: Choice | None) -> bool:
        """Return whether the model is like those of train_tokenizer and is used like them."""
        model = self._model
        self.bos_id = BOS_ID
        if (model.unk_id(), model.bos_id()) != (UNK_ID, BOS_ID) or not self._by_words:
            return False
        if choice and (choice.eos or choice.bos not in (None, self._pieces[BOS_ID])):
            return False
        if not all(map(model.is_byte, range(UNK_ID + 2, SPECIAL_PIECES))):
            return False
        probe = "  a\t b\n\n c\r\n\ufb01 e\u0301 \x00\U0001f9d0  "
        return self.decode(self.encode(probe)) == probe

    def _special_id(self, name: str, flag: str, token: str | None) -> int:
        """Return the id of a special token by name; None stands for the model's bos, else eos."""
        if token is None:
            found = next((i for i in (self._model.bos_id(), self._model.eos_id()) if i >= 0), None)
        else:
            found = self._model.piece_to_id(token)
        if found is None or not self._model.is_control(found):
            control = self.special_ids
            raise UserError(
                f"{name}: has no special token {token or 'that opens a document'}; expected {flag} "
                f"as one of: {', '.join(control) or 'none, which no model can be trained with'}"
            )
        return found

    @property
    def names(self) -> tuple[str, str | None]:
        """The special tokens that open and, if any, close a document."""
        eos = None if self.eos_id is None else self._pieces[self.eos_id]
        return self._pieces[self.bos_id], eos


def _all(text: str) -> list[str]:
    return [text] if text else []


class _WordCache(dict[str, bytes]):
    """Maps a word to its ids, as the bytes of an array; encodes it at its first look-up."""

    def __init__(self, encode_word: Callable[[str], bytes]):
        super().__init__()
        self._encode_word = encode_word

    def __missing__(self, word: str) -> bytes:
        ids = self._encode_word(word)
        if len(self) >= CACHED_WORDS:
            self.clear()
        if len(word) <= CACHED_CHARS:
            self[word] = ids
        return ids
