"""Choose the settings of the train section that are "auto": rules, their sources, all constants.

W is the model's width, N the number of its parameters with the head and without tables that are
looked up (arXiv 2406.19146 says why), D the run's tokens, B the tokens of a step, S the run's
steps. Each rule takes settings that are given as numbers or were chosen by an earlier rule:

====================  =================================================================  ==========
global_batch_size     B = 0.58 D^0.571, in sequences, the nearest power of two           2503.04715
beta2                 0.95^(B / the rule's B): its half-life is the same in tokens for   2507.07101
                      every batch, 13.5 steps of the rule's batch
lr                    2e-3 (W / 256)^-1 (min(B, 17.8 D^0.47) / 8192)^0.5                2203.03466
                      (D / 10^7)^-0.125                                                  2401.02954
warmup_steps          N / B, at most a tenth of S, but at least 2 / (1 - beta2), or a    2406.19146
                      quarter of S if that is less                                       1910.04209
weight_decay          1 / (lr S h), where h = 1.084 (D / N)^-0.527, at most 1, is the    2405.13698
                      share of the run over which the weights are an average             2505.13738
====================  =================================================================  ==========

The learning rate is the same for all parameters, times a factor from each one's policy. It falls as
1 / W, as Adam's for hidden matrices does (arXiv 2203.03466, table 3), grows with the root of the
batch (arXiv 2205.10287) up to the critical batch, which depends on D (arXiv 2410.21676), and falls
with D at a given batch: by the power that arXiv 2401.02954 has for compute, since the 0.32 that
arXiv 2409.19913 found within horizons of one model misses the best rates of larger models.
The 2e-3 is our own, from minima of parabolas through three rates, on novels with AdamW: the best
rate was 0.014 at width 16 (1,024 tokens a step, 1.5M in all; attention, static and delta alike),
0.006 at 64 (4,096, 4.1M; attention, two rates), 0.0028 at 256 (8,192, 1.5M; gam_delta without
convolutions inside; mamba2 0.0035, while static was still improving at 0.012). The rule gives
0.0144, 0.0063 and 0.0025 there, and 0.0007 for a model of width 2,048 on 20 billion tokens in
batches of 442,000, where arXiv 2503.04715 has 0.001. configs/compare/transfer.json checks the rule.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gam_scale.config import RunConfig, TrainConfig
from gam_scale.config.stages import total_tokens
from gam_scale.errors import UserError
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.strict import is_auto

LR = 2e-3
LR_WIDTH, LR_BATCH, LR_TOKENS = 256, 8192, 1e7
"""The width, the tokens of a step and the tokens of the run for which :data:`LR` holds."""
LR_BY_WIDTH, LR_BY_BATCH, LR_BY_TOKENS = -1.0, 0.5, -0.125
CRITICAL_BY_TOKENS = 0.47
CRITICAL = 22.91 * 512 / 1e6**CRITICAL_BY_TOKENS
"""Critical batch in tokens per D^0.47. arXiv 2410.21676 counts sequences of 512 and millions of
tokens; its law in D agrees with its law in N, 93.2 N^0.47, at 20 tokens a parameter."""
BATCH, BATCH_BY_TOKENS = 0.58, 0.571
BETA2 = 0.95
BETA2_BOUNDS = 0.9, 0.999
WARMUP_SHARE, WARMUP_FLOOR_SHARE = 0.1, 0.25
HORIZON, HORIZON_BY_RATIO = 1.084, -0.527
MOST_DECAY = 1.0
"""The largest weight decay: the rule asks for more in a run of a hundred steps, which no source
has tried."""


@dataclass(frozen=True)
class Scale:
    """The sizes from which the rules choose."""

    width: int
    parameters: int
    """Number of parameters, with the head and without embeddings that are looked up."""
    seq_len: int
    tokens: float
    """Tokens of the whole run."""


@dataclass(frozen=True)
class Chosen:
    """What the rules chose for a run, and from what: its chosen.json, and part of its summary."""

    settings: dict[str, float]
    """The chosen settings of the train section, by name."""
    scale: Scale

    def __str__(self) -> str:
        its = ", ".join(f"train.{name} {value:.6g}" for name, value in self.settings.items())
        scale = self.scale
        return (
            f"{its}: chosen for width {scale.width:,}, {scale.parameters:,} parameters with the "
            f"head, {scale.tokens:,.0f} tokens in sequences of {scale.seq_len:,}"
        )


def auto_settings(train: TrainConfig) -> list[str]:
    """Return the settings that are "auto", in the order of the rules."""
    return [name for name in RULES if is_auto(getattr(train, name))]


def choose(config: RunConfig, epoch_sequences: int | None = None) -> Chosen:
    """Choose numbers for all settings of ``config.train`` that are "auto".

    Args:
        config: the run's, its vocabulary known.
        epoch_sequences: sequences that read the first data set once; None: not known.

    Raises:
        UserError: the run's tokens are not known, or its weights were trained before.
    """
    _check_source(config)
    train = replace(config.train)
    scale = _scale(config, epoch_sequences)
    settings = {}
    for name in auto_settings(train):
        settings[name] = RULES[name](train, scale)
        setattr(train, name, settings[name])
        if name == "global_batch_size" and train.steps:  # the rule's batch was not a power of two
            scale = replace(scale, tokens=float(train.steps * settings[name] * scale.seq_len))
    return Chosen(settings, scale)


def with_chosen(config: RunConfig, epoch_sequences: int | None = None) -> RunConfig:
    """Return ``config`` with numbers for all settings that are "auto"; see :func:`choose`."""
    if not auto_settings(config.train):
        return config
    train = with_settings(config.train, choose(config, epoch_sequences).settings)
    return replace(config, train=train)


def with_settings(train: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return ``train`` with these settings, given by name."""
    return replace(train, **settings)


def parameters_with_head(model: LanguageModel) -> int:
    """Count the parameters that every token is multiplied by: all but tables that are looked up."""
    tables = [model.position, None if model.head is None else model.embedding]
    return model.n_parameters() - sum(t.weight.numel() for t in tables if t is not None)


def _check_source(config: RunConfig) -> None:
    """Refuse rules that are made for weights which are random at first, and to be forgotten."""
    sources = ("continue_from", "init_from")
    given = [name for name in sources if getattr(config.checkpoint, name)]
    for name in auto_settings(config.train) if given else ():
        if name in FROM_SCRATCH:
            raise UserError(
                f"train.{name} is auto beside checkpoint.{given[0]}; expected a number, since the "
                "rule is for a model that begins with random weights (docs/fine_tuning.md)"
            )


def _scale(config: RunConfig, epoch_sequences: int | None) -> Scale:
    train, length = config.train, config.data.seq_len
    model = outline(config.model)
    if train.epochs:
        if epoch_sequences is None:
            raise UserError(
                f"train.{auto_settings(train)[0]} is auto with train.epochs, and the data is not "
                "read here; expected train.steps, or a number"
            )
        tokens = train.epochs * epoch_sequences * length
    elif is_auto(train.global_batch_size):  # D = S B, so that B = 0.58 (S B)^0.571
        by_steps = BATCH * train.steps**BATCH_BY_TOKENS
        tokens = train.steps * by_steps ** (1 / (1 - BATCH_BY_TOKENS))
    else:
        tokens = float(total_tokens(config))
    return Scale(config.model.d_model, parameters_with_head(model), length, tokens)


def _batch_tokens(scale: Scale) -> float:
    return BATCH * scale.tokens**BATCH_BY_TOKENS


def _batch(train: TrainConfig, scale: Scale) -> int:
    return 2 ** max(0, round(math.log2(_batch_tokens(scale) / scale.seq_len)))


def _tokens_a_step(train: TrainConfig, scale: Scale) -> float:
    if train.stages:  # on average: each stage has its own batch and length
        return scale.tokens / train.steps
    return train.global_batch_size * scale.seq_len


def _steps(train: TrainConfig, scale: Scale) -> float:
    return train.steps or max(1.0, scale.tokens / _tokens_a_step(train, scale))


def _beta2(train: TrainConfig, scale: Scale) -> float:
    least, most = BETA2_BOUNDS
    beta2 = BETA2 ** (_tokens_a_step(train, scale) / _batch_tokens(scale))
    return round(min(most, max(least, beta2)), 4)


def _lr(train: TrainConfig, scale: Scale) -> float:
    critical = CRITICAL * scale.tokens**CRITICAL_BY_TOKENS
    batch = min(_tokens_a_step(train, scale), critical)
    rate = LR * (scale.width / LR_WIDTH) ** LR_BY_WIDTH
    rate *= (batch / LR_BATCH) ** LR_BY_BATCH * (scale.tokens / LR_TOKENS) ** LR_BY_TOKENS
    return _digits(rate)


def _warmup(train: TrainConfig, scale: Scale) -> int:
    steps = _steps(train, scale)
    floor = min(2 / (1 - train.beta2), WARMUP_FLOOR_SHARE * steps)
    by_size = scale.parameters / _tokens_a_step(train, scale)
    return round(max(min(by_size, WARMUP_SHARE * steps), floor))


def _weight_decay(train: TrainConfig, scale: Scale) -> float:
    horizon = min(1.0, HORIZON * (scale.tokens / scale.parameters) ** HORIZON_BY_RATIO)
    decay = 1 / (train.lr * _steps(train, scale) * horizon)
    return _digits(min(MOST_DECAY, decay))


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


RULES: dict[str, Callable[[TrainConfig, Scale], float]] = {
    "global_batch_size": _batch,
    "beta2": _beta2,
    "lr": _lr,
    "warmup_steps": _warmup,
    "weight_decay": _weight_decay,
}
"""The rule for each setting, in an order in which each needs only earlier ones."""
FROM_SCRATCH = ("lr", "weight_decay")
"""Settings whose rules hold for weights that were not trained before: the rate is a run's peak,
and the decay makes initial weights fade."""
