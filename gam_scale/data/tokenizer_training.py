"""Train a sentencepiece tokenizer that gives every text back, as the same file on any machine."""

import heapq
import io
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import sentencepiece as spm

from gam_scale.data.documents import utf8_size
from gam_scale.data.sentencepiece_tokenizer import (
    BOS_ID,
    SPECIAL_PIECES,
    UNK_ID,
    SentencePieceTokenizer,
)
from gam_scale.data.tokenizer import SPACE
from gam_scale.errors import UserError
from gam_scale.files import write_bytes

SAMPLE_PIECE_CHARS = 4096
SAMPLE_BYTES = 1 << 26
# The model file records the number of threads, and unigram's sums depend on it. It is fixed, so
# that the same text gives the same bytes on every machine.
TRAINER_THREADS = 16

_TOO_MANY_CHARACTERS = re.compile(r"required_chars\. \d+ vs (\d+)")
_NO_CHARACTERS = f" \t\0{SPACE}"  # the trainer makes no pieces of these, or one in any case


def train_tokenizer(
    texts: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    max_bytes: int = SAMPLE_BYTES,
    character_coverage: float | None = None,
) -> SentencePieceTokenizer:
    """Train on a seeded sample of ``texts`` of at most ``max_bytes`` and write the model file.

    The same texts give the same file, byte for byte, on any machine. Digits are pieces of their
    own, so that a number is spelled the same way wherever it stands; runs of spaces and newlines
    may be pieces, so that indented text stays short.

    Args:
        texts: the texts to draw the sample from.
        path: the model file to write.
        vocab_size: number of ids, the special and byte pieces included.
        model_type: how the pieces are learned.
        max_bytes: size of the sample.
        character_coverage: the share of the sample's text to cover with pieces of one character
            each, the commonest first; other characters are spelled in bytes. None: sentencepiece's
            0.9995; if the vocabulary has no room for that, as many characters as fill half of it.

    Raises:
        UserError: the text is empty, or supports only a smaller (or needs a larger) vocabulary;
            the message states which.
    """
    sample = list(_sample(texts, max_bytes))
    return train_on_sample(sample, path, vocab_size, model_type, character_coverage)


def train_on_sample(
    sample: Iterable[str],
    path: str | Path,
    vocab_size: int,
    model_type: Literal["bpe", "unigram"] = "bpe",
    character_coverage: float | None = None,
) -> SentencePieceTokenizer:
    """Train like :func:`train_tokenizer`, on stretches of text that :class:`Draw` has chosen."""
    # The trainer drops every sentence that holds U+2585, its own mark for unknowns.
    sample = [piece.replace("\u2585", " ") for piece in sample]
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
    return SentencePieceTokenizer(model, str(path))


def _train(
    sample: Iterable[str], vocab_size: int, model_type: str, coverage: float | None
) -> bytes:
    buffer = io.BytesIO()
    # The model file records the settings that are given, so the default is not given.
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
    """Train where sentencepiece's lowest coverage, 0.98, takes too many characters.

    Half of the vocabulary is for characters, so that the other half can be longer pieces. If the
    text does not support that many longer pieces, the vocabulary is of characters alone.
    """
    counts = Counter[str]()
    for piece in sample:
        counts.update(piece)
    for character in _NO_CHARACTERS:
        del counts[character]
    room = vocab_size - SPECIAL_PIECES - 1  # 1 for the space
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
    """Yield the sample, split at (and without) all but the ``kept`` commonest characters."""
    rare = re.compile(f"[{re.escape(''.join(ranked[kept:]))}]+")
    return (part for piece in sample for part in rare.split(piece) if part)


class Draw:
    """Draws a uniform sample of stretches of text, bounded in size, from their sizes alone.

    Each stretch draws a random number, and the stretches with the smallest numbers are kept
    (bottom-k sampling). This needs one pass and no knowledge of how much text there is.
    """

    def __init__(self, max_bytes: int = SAMPLE_BYTES, seed: int = 0) -> None:
        self._rng, self._max_bytes = random.Random(seed), max_bytes
        self._kept: list[tuple[float, int, int]] = []  # a heap of (-drawn number, stretch, bytes)
        self._size = self._count = 0

    def add(self, size: int) -> list[int]:
        """Draw for the next stretch, of ``size`` bytes; return which stretches drop out."""
        draw, number = -self._rng.random(), self._count
        self._count += 1
        kept = self._kept
        if kept and draw <= kept[0][0] and self._size + size > self._max_bytes:
            return [number]
        heapq.heappush(kept, (draw, number, size))
        self._size += size
        out = []
        while self._size > self._max_bytes and len(kept) > 1:
            _, dropped, its_size = heapq.heappop(kept)
            self._size -= its_size
            out.append(dropped)
        return out

    def kept(self) -> list[int]:
        """Return the numbers of the kept stretches, counted from 0, in order."""
        return sorted(number for _, number, _ in self._kept)


def sample_pieces(text: str) -> Iterator[str]:
    """Cut a text into the stretches that a sample consists of."""
    return (text[i : i + SAMPLE_PIECE_CHARS] for i in range(0, len(text), SAMPLE_PIECE_CHARS))


def _sample(texts: Iterable[str], max_bytes: int, seed: int = 0) -> Iterable[str]:
    """Return the stretches that :class:`Draw` chooses, in order."""
    draw = Draw(max_bytes, seed)
    kept: dict[int, str] = {}
    for number, piece in enumerate(piece for text in texts for piece in sample_pieces(text)):
        kept[number] = piece
        for out in draw.add(utf8_size(piece)):
            del kept[out]
    return kept.values()


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
