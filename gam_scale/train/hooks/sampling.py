"""Texts that the model writes from fixed prompts while it trains, to show what it learns."""

import math
from collections.abc import Callable
from typing import cast

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
"""Fewest tokens of a text on each rank that shares it, if ``data.seq_len`` is long enough."""
LIKELY = Sampling(temperature=0.8, top_p=0.95)


class Samples(Hook):
    """Writes a text for each prompt, all ranks together, every ``log.sample_every`` steps.

    Each new token takes a forward pass over the whole texts, padded to one length, as in
    evaluation. It therefore works under every engine, with sharded parameters and sequences cut
    over ranks. The draws follow from the seed and the place in the text alone, so they are the same
    at every step and on any rank.

    Args:
        tokenizer: the run's tokenizer.
        log: receives the texts.
        check_lock: as for :class:`~gam_scale.train.hooks.lines.Lines`.
    """

    def __init__(
        self, tokenizer: Tokenizer, log: MetricLog, check_lock: Callable[[], None]
    ) -> None:
        self._tokenizer, self._log, self._check_lock = tokenizer, log, check_lock

    def start(self, loop: Loop) -> None:
        """Encode the prompts and choose the length of the texts."""
        self._prompts = prompts_of(loop.config)
        self._ids = [prompt_ids(prompt, self._tokenizer) for prompt in self._prompts]
        longest = loop.config.data.seq_len
        cuts = loop.world.axes.context
        each = max(LEAST, math.ceil((max(map(len, self._ids)) + NEW_TOKENS) / cuts))
        self._length = min(longest, cuts * each)

    def between(self, loop: Loop) -> None:
        """Write texts if they are due."""
        every, step = loop.config.log.sample_every, loop.state.step
        if not every or step % every:
            return
        loop.doing("sampling")
        with loop.clock.paused():
            texts = [self._decoded(new) for new in self._continued(loop)]
        self._check_lock()
        self._log.samples(step, list(zip(self._prompts, texts, strict=True)))

    def _continued(self, loop: Loop) -> list[list[int]]:
        """Return the new ids for each prompt, up to the end of its document."""
        texts = [list(ids) for ids in self._ids]
        most = [min(self._length, len(ids) + NEW_TOKENS) for ids in texts]
        going = [i for i, ids in enumerate(texts) if len(ids) < most[i]]
        while going:
            pulse.beat()
            tokens = dict(zip(going, self._next(loop, texts, going), strict=True))
            ended = {i for i, t in tokens.items() if t is None or t in self._tokenizer.ends}
            for i in tokens.keys() - ended:
                texts[i].append(cast(int, tokens[i]))
            going = [i for i in going if i not in ended and len(texts[i]) < most[i]]
        return [ids[len(prompt) :] for ids, prompt in zip(texts, self._ids, strict=True)]

    def _next(self, loop: Loop, texts: list[list[int]], going: list[int]) -> list[int | None]:
        """Return the next id of each text in ``going``; None: its logits are not finite."""
        tokens = torch.zeros(len(texts), self._length, dtype=torch.int64)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = torch.tensor(ids)
        world = loop.world
        batch = part(plain_batch(tokens, tokens), world).to(world.device)
        logits = loop.strategy.logits(batch.tokens, batch.layout)
        chosen = []
        for row in going:
            number, last = divmod(len(texts[row]) - 1, logits.shape[1])
            token = 0.0
            if world.reader == 0 and world.place.context == number:  # one rank chooses for all
                generator = draw(loop.config.train.seed, len(texts[row]), logits.device)
                token = float(_choose(logits[row, last, : self._tokenizer.vocab_size], generator))
            chosen.append(token)
        return [None if math.isnan(token) else int(token) for token in world.sum(*chosen)]

    def _decoded(self, ids: list[int]) -> str:
        pieces = b"".join(map(self._tokenizer.id_to_bytes, ids))
        return pieces.decode("utf-8", "replace")


def prompts_of(config: RunConfig) -> list[str]:
    """Return the prompts that the run's texts continue."""
    return config.log.sample_prompts or [config.log.sample_prompt]


def prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """Return the token that opens a text, followed by the prompt's tokens."""
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]


def check_prompt(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuse a prompt that leaves no room for a new token in a sequence.

    Raises:
        UserError: the run is to write samples, and a prompt is too long.
    """
    if not config.log.sample_every:
        return
    name, longest = "log.sample_prompt", config.data.seq_len
    for i, prompt in enumerate(prompts_of(config)):
        tokens = len(prompt_ids(prompt, tokenizer))
        if tokens >= longest:
            where = f"{name}s[{i}]" if config.log.sample_prompts else name
            raise UserError(
                f"{where} has {tokens} tokens, the one that opens a text included; expected "
                f"fewer than data.seq_len {longest}"
            )


def draw(seed: int, place: int, device: torch.device) -> torch.Generator:
    """Return the generator that draws the token in one place of a text."""
    return torch.Generator(device).manual_seed(derive_seed(seed, "sample", place))


def _choose(logits: Tensor, generator: torch.Generator) -> Tensor | float:
    logits = logits.float()
    return sample(logits, LIKELY, generator) if torch.isfinite(logits).all() else math.nan
