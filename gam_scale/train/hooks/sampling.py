"""Texts that the model writes while it trains, from a fixed prompt: a look at what it learns."""

import codecs
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gam_scale import pulse
from gam_scale.config import RunConfig
from gam_scale.data.order import derive_seed
from gam_scale.data.packing import plain_batch
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.generate import Sampling, sample
from gam_scale.parallel.context import part
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.sinks import MetricLog

NEW_TOKENS = 96
LEAST = 64
"""Tokens that each of the ranks has which share a sequence, if sequences are as long."""
LIKELY = Sampling(temperature=0.8, top_p=0.95)


class Samples(Hook):
    """Every ``log.sample_every`` steps, all ranks together write a text.

    Each token is read off a forward pass over the whole text, of one length, as evaluation does
    it: so it works under every engine, where parameters are sharded and where a sequence is. The
    draws follow from the seed and the place in the text: the same at every step, on any rank.

    Args:
        tokenizer: of the run.
        log: where texts go.
        check_lock: as that of :class:`~gam_scale.train.hooks.lines.Lines`.
    """

    def __init__(
        self, tokenizer: Tokenizer, log: MetricLog, check_lock: Callable[[], None]
    ) -> None:
        self._tokenizer, self._log, self._check_lock = tokenizer, log, check_lock

    def start(self, loop: Loop) -> None:
        """Know the prompt."""
        self._prompt = loop.config.log.sample_prompt
        self._ids = prompt_ids(self._prompt, self._tokenizer)
        longest = loop.config.data.seq_len
        cuts = loop.world.axes.context
        each = max(LEAST, math.ceil((len(self._ids) + NEW_TOKENS) / cuts))
        self._length = min(longest, cuts * each)

    def between(self, loop: Loop) -> None:
        """Write, if it is time to."""
        every, step = loop.config.log.sample_every, loop.state.step
        if not every or step % every:
            return
        loop.doing("sampling")
        with loop.clock.paused():
            text = "".join(self._text(loop))
        self._check_lock()
        self._log.sample(step, self._prompt, text)

    def _text(self, loop: Loop) -> Iterator[str]:
        """Pieces of what continues the prompt, up to the end of its document."""
        ids, pieces = list(self._ids), codecs.getincrementaldecoder("utf-8")("replace")
        while len(ids) < min(self._length, len(self._ids) + NEW_TOKENS):
            pulse.beat()
            token = self._next(loop, ids)
            if token is None or token in self._tokenizer.ends:
                break
            ids.append(token)
            yield pieces.decode(self._tokenizer.id_to_bytes(token))
        yield pieces.decode(b"", final=True)

    def _next(self, loop: Loop, ids: list[int]) -> int | None:
        """The id that one rank chooses for all after ``ids``; None: logits are not finite."""
        tokens = torch.zeros(1, self._length, dtype=torch.int64)
        tokens[0, : len(ids)] = torch.tensor(ids)
        world = loop.world
        batch = part(plain_batch(tokens, tokens), world).to(world.device)
        logits = loop.strategy.logits(batch.tokens, batch.layout)
        number, last = divmod(len(ids) - 1, logits.shape[1])
        chosen = 0.0
        if world.reader == 0 and world.place.context == number:  # of ranks that compute the same
            generator = draw(loop.config.train.seed, len(ids), logits.device)
            chosen = float(_choose(logits[0, last, : self._tokenizer.vocab_size], generator))
        (token,) = world.sum(chosen)
        return None if math.isnan(token) else int(token)


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """A prompt's tokens, after the one that opens a text."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def check_prompt(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse a prompt where a sequence cannot hold it and something new.

    Raises:
        UserError: the run is to write samples, and it is so long.
    """
    if not config.log.sample_every:
        return
    tokens, longest = len(prompt_ids(config.log.sample_prompt, tokenizer)), config.data.seq_len
    if tokens >= longest:
        raise UserError(
            f"log.sample_prompt has {tokens} tokens, the one that opens a text included; expected "
            f"fewer than data.seq_len {longest}"
        )


def draw(seed: int, place: int, device: torch.device) -> torch.Generator:
    """What the token in one place of a text is drawn with."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "sample", place))


def _choose(logits: Tensor, generator: torch.Generator) -> Tensor | float:
    logits = logits.float()
    return sample(logits, LIKELY, generator) if torch.isfinite(logits).all() else math.nan
