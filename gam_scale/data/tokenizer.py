"""The sentencepiece tokenizer: trained, loaded, and lossless in both directions."""

import hashlib
import heapq
import io
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece as spm

from gam_scale.errors import UserError
from gam_scale.files import read_regular, write_bytes

UNK_ID, BOS_ID = 0, 1
SPECIAL_PIECES = 2 + 256  # <unk>, <s>, then one piece per byte
SPACE = "\u2581"  # what sentencepiece writes for a space inside its pieces
SAMPLE_PIECE_CHARS = 4096
# Encoded at a time: sentencepiece takes up to 60 bytes of memory for each byte of a word, and text
# without spaces is one word.
STRETCH_CHARS = 1 << 16
# The model file records the number of threads and unigram's sums depend on it, so one number for
# every machine: the same text gives the same bytes everywhere.
TRAINER_THREADS = 16
TokenDtype = Literal["uint16", "uint32"]
"""What holds a token id."""
CACHED_WORDS = 1 << 18  # about 60 MB
CACHED_CHARS = 64  # longer ones hardly come again

# Text falls apart into words that are encoded one at a time and looked up when they come again,
# two to four times faster than sentencepiece on running text. The ids are the same, because no
# piece that sentencepiece learns spans a word's end and the space after it, or an ASCII letter
# and another ASCII sign. Spaces before a word are part of it; from the first non-ASCII
# character on, all up to the next space is.
_WORDS = re.compile(
    r" *(?:[A-Za-z]++(?![^\0-\x7f])|[^A-Za-z \x80-\U0010ffff]++(?![^\0-\x7f])|[^ ]+)| +"
)
_WORD_START = re.compile(r"(?<=[^ ]) ")
_SPANS_WORDS = re.compile(
    r"[^\u2581]\u2581|[A-Za-z][^A-Za-z\x80-\U0010ffff]|[^A-Za-z\x80-\U0010ffff][A-Za-z]"
)

_TOO_MANY_CHARACTERS = re.compile(r"required_chars\. \d+ vs (\d+)")
_NO_CHARACTERS = f" \t\0{SPACE}"  # of which the trainer makes no pieces, or one in any case


class Tokenizer:
    """Text to ids and back: ``decode(encode(text)) == text`` for every text that UTF-8 can hold.

    Ids: 0 ``<unk>`` (never produced), 1 ``<s>`` (document boundary), 256 bytes, then the pieces.
    Lone surrogates are not text in UTF-8's sense and raise UnicodeEncodeError.
    """

    def __init__(self, model_bytes: bytes, name: str = "tokenizer"):
        self.model_bytes = model_bytes
        self._model = spm.SentencePieceProcessor(model_proto=model_bytes)
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = BOS_ID
        self.dtype: TokenDtype = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self._pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        self._words = _WordCache(self._encode_word)
        self._check(name)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model file.

        Raises:
            UserError: no such file, not a sentencepiece model, or one that loses text.
        """
        data = read_regular(path)
        try:
            if not data:  # of which sentencepiece only says, on stderr, that it has no model
                raise ValueError
            return cls(data, str(path))
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: is not a sentencepiece model or is damaged") from None

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the model file."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @cached_property
    def model_type(self) -> str:
        """``bpe`` or ``unigram``: a piece's score is its rank in the one, a log-probability else.

        The file says it too, but reading that takes protobuf, which a plain installation lacks.
        """
        scores = [self._model.get_score(i) for i in range(SPECIAL_PIECES, self.vocab_size)]
        return "bpe" if all(score.is_integer() for score in scores) else "unigram"

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without bos."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of ``text``, without bos, as a read-only array of :attr:`dtype`."""
        parts = (
            b"".join(map(self._words.__getitem__, _WORDS.findall(part)))
            for part in self.stretches(text)
        )
        return np.frombuffer(b"".join(parts), self.dtype)

    def stretches(self, text: str) -> Iterator[str]:
        """``text`` in parts of at most ``2 * STRETCH_CHARS`` characters, to be encoded one by one.

        Cut where a word begins, else between two characters that no piece holds side by side:
        there the ids are those of the uncut text (of a unigram model within a word, up to ties).
        Where there is no such place either, as in a long run of one letter, the cut is after
        ``2 * STRETCH_CHARS`` and the ids around it may be others than sentencepiece's own.
        """
        start = 0
        while len(text) - start > 2 * STRETCH_CHARS:
            end = self._cut(text, start + STRETCH_CHARS, start + 2 * STRETCH_CHARS)
            yield text[start:end]
            start = end
        yield text[start:] if start else text

    def _cut(self, text: str, low: int, high: int) -> int:
        if word := _WORD_START.search(text, low, high):
            return word.start()
        return next((i for i in range(low, high) if text[i - 1 : i + 1] not in self._pairs), high)

    @cached_property
    def _pairs(self) -> frozenset[str]:
        """Any two characters that stand side by side in a piece."""
        pieces = (piece.replace(SPACE, " ") for piece in self._pieces[SPECIAL_PIECES:])
        return frozenset(piece[i : i + 2] for piece in pieces for i in range(len(piece) - 1))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, special ids skipped; bytes that are not UTF-8 become U+FFFD."""
        special = self._special
        return self._model.decode([int(i) for i in ids if int(i) not in special])

    def token_bytes(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, (vocab_size,) int32; 0 for special ids.

        Summed over ``encode(text)`` they give ``len(text.encode())``: what bits per byte needs.
        """
        return np.array([len(self.id_to_bytes(i)) for i in range(self.vocab_size)], np.int32)

    def id_to_bytes(self, token: int) -> bytes:
        """What an id stands for: part of a character for a byte piece, nothing for special ids."""
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

    @cached_property
    def _space_ids(self) -> list[int]:
        """U+2581 itself as byte pieces: sentencepiece would turn it into a space."""
        return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    def _encode_word(self, word: str) -> bytes:
        word.encode()  # a lone surrogate fails here, where the error still names it
        ids, *rest = (self._model.encode_as_ids(part) for part in word.split(SPACE))
        for part in rest:
            ids = [*ids, *self._space_ids, *part]
        return np.array(ids, self.dtype).tobytes()

    def _check(self, name: str) -> None:
        """Refuse models that would lose text or that cannot be encoded word by word."""
        model = self._model
        ids = (model.unk_id(), model.bos_id())
        if ids != (UNK_ID, BOS_ID):
            raise UserError(
                f"{name}: <unk> and <s> are ids {ids[0]} and {ids[1]}; expected {UNK_ID} and "
                f"{BOS_ID}, as tools/prepare_data.py trains them"
            )
        probe = "  a\t b\n\n c\r\n\ufb01 e\u0301 \x00\U0001f9d0  "
        learned = self._pieces[SPECIAL_PIECES:]
        if any(map(_SPANS_WORDS.search, learned)) or self.decode(self.encode(probe)) != probe:
            raise UserError(
                f"{name}: this model does not give text back as it was (normalisation, a dummy "
                "prefix, no byte pieces or pieces over several words); expected one that "
                "tools/prepare_data.py trained"
            )


class _WordCache(dict[str, bytes]):
    """The ids of a word, as the bytes of an array; encoded at its first look-up."""

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


def train_tokenizer(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    max_bytes: int = 1 << 26,
    character_coverage: float | None = None,
) -> Tokenizer:
    """Train on a seeded sample of ``texts`` of at most ``max_bytes`` and write the model file.

    The same texts give the same file, byte for byte, on any machine. Digits are pieces of their
    own, so that a number is spelled the same way wherever it stands; runs of spaces and newlines
    may be pieces, so that indented text stays short.

    Args:
        texts: to draw the sample from.
        path: of the model file.
        vocab_size: ids, the special and byte pieces included.
        model_type: how the pieces are learned.
        max_bytes: of the sample.
        character_coverage: the share of the sample's characters whose kinds, the commonest first,
            have a piece of their own; the others are spelled in bytes. None: sentencepiece's
            0.9995, and where the vocabulary has no room for those, as many kinds as fill half.

    Raises:
        UserError: the text is empty, or supports only a smaller (or needs a larger) vocabulary;
            the message states which.
    """
    sample = list(_sample(texts, max_bytes))
    try:
        try:
            model = _train(sample, vocab_size, model_type, character_coverage)
        except RuntimeError as error:
            if character_coverage is not None or not _TOO_MANY_CHARACTERS.search(str(error)):
                raise
            model = _train_on_common_characters(sample, vocab_size, model_type)
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from None
    write_bytes(path, model)
    return Tokenizer(model, str(path))


def _train(
    sample: Iterable[str], vocab_size: int, model_type: str, coverage: float | None
) -> bytes:
    buffer = io.BytesIO()
    # The model file records what is given, so the default is not.
    given: dict[str, Any] = {} if coverage is None else {"character_coverage": coverage}
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sample),
        model_writer=buffer,
        vocab_size=vocab_size,
        model_type=model_type,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        required_chars=SPACE,  # without a piece of its own a space would come back as U+2581
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=-1,
        pad_id=-1,
        max_sentence_length=4 * SAMPLE_PIECE_CHARS,  # in bytes; longer ones are dropped
        num_threads=TRAINER_THREADS,
        minloglevel=2,
        **given,
    )
    return buffer.getvalue()


def _train_on_common_characters(sample: list[str], vocab_size: int, model_type: str) -> bytes:
    """Train where sentencepiece's own coverage, which ends at 0.98, takes too many characters.

    Half of the vocabulary is for characters, so that the other half can be longer pieces; text that
    does not support those has characters alone.
    """
    counts = Counter[str]()
    for piece in sample:
        counts.update(piece)
    for character in _NO_CHARACTERS:
        del counts[character]
    room = vocab_size - SPECIAL_PIECES - 1  # one is the space's
    if room < 1:
        raise RuntimeError(f"required_chars. {vocab_size} vs {SPECIAL_PIECES + 2}")
    ranked, kept = [character for character, _ in counts.most_common()], (room + 1) // 2
    try:
        model = _train(_without_rare(sample, ranked, kept), vocab_size, model_type, 1.0)
    except RuntimeError as error:
        if "too high" not in str(error):
            raise
        kept = room
        model = _train(_without_rare(sample, ranked, kept), vocab_size, model_type, 1.0)
    share = sum(counts[character] for character in ranked[:kept]) / counts.total()
    print(
        f"the text has {len(ranked):,} kinds of characters: the {kept:,} commonest, {share:.2%} of "
        "it, have pieces of their own, bytes spell the others",
        file=sys.stderr,
    )
    return model


def _without_rare(sample: list[str], ranked: list[str], kept: int) -> Iterator[str]:
    """The sample, fallen apart at all but the ``kept`` commonest characters."""
    rare = re.compile(f"[{re.escape(''.join(ranked[kept:]))}]+")
    return (part for piece in sample for part in rare.split(piece) if part)


def _sample(texts: Iterable[str], max_bytes: int, seed: int = 0) -> Iterator[str]:
    """A uniform sample of short stretches of text, of bounded size, in their order.

    Each stretch draws a number and those with the smallest are kept (bottom-k sampling), which
    needs one pass and no knowledge of how much text there is.
    """
    rng = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap; largest number first
    size, index = 0, 0
    for text in texts:
        for start in range(0, len(text), SAMPLE_PIECE_CHARS):
            index += 1
            draw = -rng.random()
            if size >= max_bytes and draw <= kept[0][0]:
                continue
            piece = text[start : start + SAMPLE_PIECE_CHARS]
            heapq.heappush(kept, (draw, index, piece))
            size += len(piece.encode())
            while size > max_bytes and len(kept) > 1:
                size -= len(heapq.heappop(kept)[2].encode())
    # The trainer drops every sentence that has its own mark for unknowns, U+2585.
    return (piece.replace("\u2585", " ") for _, _, piece in sorted(kept, key=lambda item: item[1]))


def _training_error(message: str, vocab_size: int) -> UserError:
    if match := re.search(r"too high.*<= (\d+)", message):
        return UserError(
            f"a vocabulary of {vocab_size} is too large for this text; it supports at most "
            f"{match[1]} (256 bytes and 2 special ids included)"
        )
    if match := _TOO_MANY_CHARACTERS.search(message):
        return UserError(
            f"a vocabulary of {vocab_size} is too small for this text; it needs at least "
            f"{match[1]}: {SPECIAL_PIECES} special and byte pieces and the characters that "
            "--character-coverage asks for"
        )
    if "sentences_.empty()" in message:
        return UserError("there is no text to train a tokenizer on; expected a non-empty document")
    return UserError(f"the tokenizer could not be trained: {message}")
