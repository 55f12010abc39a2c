"""Generate text from a model, token by token; only attention's cost per token grows with it."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gam_scale import pulse
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.model.lm import LanguageModel

COLDEST = 1e-30
"""Least temperature by which logits are divided: with less, a quotient would not be finite."""
MAX_TOKENS = 200
"""Number of new tokens if none is asked for and the model's context holds them."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability (arXiv 1904.09751)."""


def generate(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_tokens: int | None,
    sampling: Sampling,
    seed: int = 0,
) -> Iterator[str]:
    """Yield pieces of text that continue ``prompt``, as they are sampled.

    Stops at ``max_tokens`` (None: ``MAX_TOKENS``, or as many as the context still holds) or where
    the model ends the document.

    Raises:
        UserError: attention with learned positions cannot reach that far, or the model's training
            went to NaN.
    """
    text = Continuation(model, tokenizer, sampling, seed)
    text.read([tokenizer.bos_id, *tokenizer.encode(prompt)])
    yield from text.pieces(max_tokens, tokenizer.ends)


class Continuation:
    """A text that grows by what is read into it and by what the model says, each token read once.

    Between tokens the blocks keep a state, such as a memory's, a convolution's last inputs, or
    attention's keys and values.

    Attributes:
        ids: the whole text's tokens.
        ended: whether the model ended what it said last, rather than being cut off.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, sampling: Sampling, seed: int = 0
    ) -> None:
        self._model, self._tokenizer, self._sampling = model.eval(), tokenizer, sampling
        self._device = model.embedding.weight.device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self.restart()

    def restart(self) -> None:
        """Begin again with an empty text; the random generator goes on."""
        self.ids: list[int] = []
        self.ended = False
        self._seen = 0
        self._state = self._model.init_state()

    def read(self, ids: Sequence[int]) -> None:
        """Add ids to the text."""
        self.ids += ids

    def mark(self) -> "Mark":
        """Return where the text stands, for :meth:`go_back`."""
        return Mark(len(self.ids), self._seen, self._state)

    def go_back(self, mark: "Mark") -> None:
        """Forget what came after ``mark``."""
        del self.ids[mark.length :]
        self._seen, self._state = mark.seen, mark.state

    def pieces(self, max_tokens: int | None, ends: frozenset[int]) -> Iterator[str]:
        """Yield what the model says next, up to one of the ids in ``ends``, which is left out.

        Args:
            max_tokens: see :func:`generate`.
            ends: ids that end it.

        Raises:
            UserError: see :func:`generate`.
        """
        max_tokens = _how_many(max_tokens, len(self.ids), self._model.context_limit)
        text = codecs.getincrementaldecoder("utf-8")("replace")  # a character may span tokens
        self.ended = False
        for _ in range(max_tokens):
            pulse.beat()
            token = self._next()
            if token in ends:
                self.ended = True
                break
            self.ids.append(token)
            if piece := text.decode(self._tokenizer.id_to_bytes(token)):
                yield piece
        if rest := text.decode(b"", final=True):
            yield rest

    def _next(self) -> int:
        new = torch.tensor([self.ids[self._seen :]], device=self._device)
        with torch.no_grad():
            logits, state = self._model.extend(new, self._state)
        self._state, self._seen = state, len(self.ids)
        logits = logits[0, : self._tokenizer.vocab_size].float()  # a model may have more ids
        if not torch.isfinite(logits).all():
            raise UserError(
                "the model's logits are not finite numbers, so there is no text to sample; "
                "expected a checkpoint from before its training diverged"
            )
        return int(sample(logits, self._sampling, self._generator))


@dataclass(frozen=True)
class Mark:
    """A place in a text: the text's length, how many tokens the state has read, and the state."""

    length: int
    seen: int
    state: dict[str, Any]


def _how_many(asked: int | None, prompt: int, limit: int | None) -> int:
    """Return the number of new tokens after ``prompt`` tokens in a context of ``limit``."""
    if limit is None:
        return MAX_TOKENS if asked is None else asked
    if prompt >= limit:
        raise UserError(
            f"the prompt has {prompt} tokens and the model's context {limit}; expected at most "
            f"{limit - 1}, the one that opens a text included"
        )
    if asked is not None and prompt + asked > limit:
        raise UserError(
            f"prompt of {prompt} tokens plus {asked} new ones exceeds the model's context of "
            f"{limit}; expected at most {limit - prompt} new tokens"
        )
    return min(MAX_TOKENS, limit - prompt) if asked is None else asked


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Choose one token id from logits (vocab_size,)."""
    if sampling.temperature == 0:
        return logits.argmax()
    scaled = (logits - logits.max()) / max(sampling.temperature, COLDEST)
    probs, ids = torch.softmax(scaled, dim=-1).sort(descending=True)
    if sampling.top_k:
        probs = probs[: sampling.top_k]
        probs = probs / probs.sum()  # top_p is a share of what top_k leaves, as elsewhere
    if sampling.top_p < 1.0:
        # A token stays if those before it do not reach top_p together: the first always does.
        before = probs.cumsum(0) - probs
        probs = probs[before < sampling.top_p]
    return ids[torch.multinomial(probs, 1, generator=generator)[0]]
