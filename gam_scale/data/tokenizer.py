"""The sentencepiece tokenizer: trained, loaded, and lossless in both directions."""

import hashlib
import heapq
import io
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece as spm

from gam_scale.data.manifest import write_atomically
from gam_scale.errors import UserError

UNK_ID, BOS_ID = 0, 1
SPECIAL_PIECES = 2 + 256  # <unk>, <s>, then one piece per byte
SPACE = "\u2581"  # what sentencepiece writes for a space inside its pieces
SAMPLE_PIECE_CHARS = 4096
# The model file records the number of threads and unigram's sums depend on it, so one number for
# every machine: the same text gives the same bytes everywhere.
TRAINER_THREADS = 16
CACHE_BYTES = 1 << 26

# No piece spans a word's end and the space after it, so words can be encoded one at a time and
# looked up when they come again: several times faster than sentencepiece on running text.
_WORDS = re.compile(r" *[^ ]+| +")


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
        self.dtype: str = "uint16" if self.vocab_size <= 1 << 16 else "uint32"
        self._pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        self._cache: dict[str, bytes] = {}
        self._cache_bytes = 0
        self._check(name)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model file.

        Raises:
            UserError: no such file, not a sentencepiece model, or one that loses text.
        """
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; expected a sentencepiece model") from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror}); expected a sentencepiece model"
            ) from None
        try:
            return cls(data, str(path))
        except (RuntimeError, ValueError):
            raise UserError(f"{path}: is not a sentencepiece model or is damaged") from None

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the model file."""
        return hashlib.sha256(self.model_bytes).hexdigest()

    @cached_property
    def model_type(self) -> str:
        """``bpe`` or ``unigram``, as the model file says."""
        from sentencepiece import sentencepiece_model_pb2 as proto

        spec = proto.ModelProto.FromString(self.model_bytes).trainer_spec
        return proto.TrainerSpec.ModelType.Name(spec.model_type).lower()

    def encode(self, text: str) -> list[int]:
        """The ids of ``text``, without bos."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, without bos, as read-only arrays of :attr:`dtype`."""
        texts_words = [_WORDS.findall(text) for text in texts]
        new = list(set(chain.from_iterable(texts_words)).difference(self._cache))
        if new:  # in one call: each costs sentencepiece a thread
            self._cache.update(zip(new, self._encode_words(new), strict=True))
            self._cache_bytes += sum(map(len, new)) + 200 * len(new)  # 200: objects around it
        look_up = self._cache.__getitem__
        ids = [b"".join(map(look_up, words)) for words in texts_words]
        if self._cache_bytes > CACHE_BYTES:
            self._cache, self._cache_bytes = {}, 0
        return [np.frombuffer(text_ids, self.dtype) for text_ids in ids]

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

    def _encode_words(self, words: list[str]) -> list[bytes]:
        "".join(words).encode()  # a lone surrogate fails here, with its position
        ids = self._model.encode(words, num_threads=1)
        for i, word in enumerate(words):
            if SPACE in word:
                first, *rest = (self._model.encode(part) for part in word.split(SPACE))
                ids[i] = first + [id for part in rest for id in (*self._space_ids, *part)]
        return [np.array(word_ids, self.dtype).tobytes() for word_ids in ids]

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
        spans_words = any(SPACE in piece.lstrip(SPACE) for piece in self._pieces)
        if spans_words or self.decode(self.encode(probe)) != probe:
            raise UserError(
                f"{name}: this model does not give text back as it was (normalisation, a dummy "
                "prefix, no byte pieces or pieces over several words); expected one that "
                "tools/prepare_data.py trained"
            )


def train_tokenizer(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    max_bytes: int = 1 << 26,
) -> Tokenizer:
    """Train on a seeded sample of ``texts`` of at most ``max_bytes`` and write the model file.

    The same texts give the same file, byte for byte, on any machine. Digits are pieces of their
    own, so that a number is spelled the same way wherever it stands; runs of spaces and newlines
    may be pieces, so that indented text stays short.

    Raises:
        UserError: the text is empty, or supports only a smaller (or needs a larger) vocabulary;
            the message states which.
    """
    buffer = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=_sample(texts, max_bytes),
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
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from None
    write_atomically(path, buffer.getvalue())
    return Tokenizer(buffer.getvalue(), str(path))


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
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"a vocabulary of {vocab_size} is too small for this text; it needs at least "
            f"{match[1]}: {SPECIAL_PIECES} special and byte pieces and the text's characters"
        )
    if "sentences_.empty()" in message:
        return UserError("there is no text to train a tokenizer on; expected a non-empty document")
    return UserError(f"the tokenizer could not be trained: {message}")
