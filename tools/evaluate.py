#!/usr/bin/env python3
"""Measure what a checkpoint has learned: python tools/evaluate.py RUN_OR_CHECKPOINT [...]

Without further flags: loss, perplexity and bits per byte, on the validation split of the run's own
data, on another prepared set (--data) or on a text file (--text). A checkpoint brings its config
and tokenizer. Several checkpoints are shown side by side. --tasks measures tasks, as eval.tasks
does in training. --by-position, --compare, --reset-ablation, --needle and --pairs show whether the
context is used. --recall needs no checkpoint: it trains a small model of each kind of layer on
associative recall, or on another task (--recall-preset).
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gam_scale import cli
from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.checkpoint.store import best_checkpoint
from gam_scale.data.packing import Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.asked import ask_tasks
from gam_scale.evaluate.by_position import loss_by_position, octaves
from gam_scale.evaluate.effective_context import (
    TARGETS,
    TOLERANCE,
    WINDOWS,
    contexts,
    effective_context,
    windows_of,
)
from gam_scale.evaluate.key_values import KeyValues, PairsResult
from gam_scale.evaluate.loss import LossResult, mean_loss, pad_rows
from gam_scale.evaluate.needle import NeedleResult, Needles
from gam_scale.evaluate.recall import KINDS, PRESETS, RecallResult, recall_config
from gam_scale.evaluate.report import write_comparison
from gam_scale.evaluate.same_tokens import compare_spans, parse_spans
from gam_scale.evaluate.subject import Subject, subject, to_json
from gam_scale.evaluate.tables import tables
from gam_scale.evaluate.text import TextSource, batches, counted, documents, read_of
from gam_scale.evaluate.token_loss import last_log_probs, token_losses
from gam_scale.files import write_json
from gam_scale.hardware.processor import find_device
from gam_scale.parallel.world import World
from gam_scale.strict import read_json
from gam_scale.train.recall import train_recall


def main() -> None:
    """Parse the command line, measure, print and write."""
    args = _parse()
    recalls = _recall(args) if args.recall else []
    subjects = [_subject(path, args) for path in args.checkpoints]
    if args.report:
        write_comparison(args.report, subjects, recalls)
    plain = len(subjects) == 1 and not recalls and not _asked(args)
    figures = _figures(subjects[0]) if plain else {"checkpoints": subjects, "recall": recalls}
    if args.json == "-":
        print(json.dumps(to_json(figures), allow_nan=False))
        return
    if args.json:
        _write_json(args.json, to_json(figures))
    if plain:
        _print(figures)
    else:
        print("\n\n".join(map(str, tables(subjects, recalls))))


def _parse() -> argparse.Namespace:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT",
        help="run directory (its newest checkpoint), step-* folder, or URL of either")  # fmt: skip
    cli.add_best(parser)
    add("--data", help="prepared set to read instead of the run's own")
    add("--split", default="valid", help="split to read: train, valid or test (default: valid)")
    add("--text", type=Path, help="text file to read instead, as one document")
    add("--seq-len", type=cli.count(), help="tokens of context per sequence (default: as trained)")
    add(
        "--max-tokens",
        type=cli.count(0),
        default=0,
        help="most tokens to read; 0: all (default: 0)",
    )
    add("--batch-size", type=cli.count(), default=8, help="sequences per forward pass (default: 8)")
    cli.add_device(parser)
    add("--seed", type=cli.count(0), default=0, help="seed of resampling and hiding (default: 0)")
    add("--json", nargs="?", const="-", metavar="FILE", help="print JSON, or write it to FILE")
    add("--report", type=Path, metavar="FILE", help="write one self-contained HTML page")
    add = parser.add_argument_group("which measurements (none: the loss)").add_argument
    add("--loss", action="store_true", help="the loss, in addition to other measurements")
    add("--by-position", action="store_true", help="loss by position: by tokens of context")
    add(
        "--per-octave",
        type=cli.count(),
        default=1,
        help="bins per doubling of context (default: 1)",
    )
    add("--compare", metavar="A-B:C-D", type=parse_spans,
        help="loss of the same tokens with A to B and with C to D tokens of text before them, such "
        "as 128-256:2048-4096")  # fmt: skip
    add("--reset-ablation", action="store_true", help="loss if memory holds the last k tokens only")
    add("--windows", type=cli.count(2), default=WINDOWS,
        help=f"sequences for --compare and --reset-ablation (default: {WINDOWS})")  # fmt: skip
    add(
        "--targets",
        type=cli.count(),
        default=TARGETS,
        help=f"tokens of each sequence that --reset-ablation predicts (default: {TARGETS})",
    )
    add("--tolerance", type=cli.number(at_least=0), default=TOLERANCE,
        help="rise in nats that counts as none in --reset-ablation (default: "
        f"{TOLERANCE:g})")  # fmt: skip
    add("--needle", action="store_true", help="a sentence hidden in the text, asked for at its end")
    add(
        "--pairs",
        type=cli.several(cli.count(2)),
        default=[],
        help="several such sentences, one of them asked for by its key of two words; numbers of "
        "sentences, such as 4,16",
    )
    add("--needle-lengths", type=cli.several(cli.count()),
        help="tokens of the texts of --needle and --pairs (default: a quarter, a half and all of "
        "--seq-len)")  # fmt: skip
    add("--needle-depths", type=cli.several(cli.number(at_least=0, at_most=1)),
        default=[0, 0.25, 0.5, 0.75, 1],
        help="depths of a needle, as shares of the text before it (default: "
        "0,0.25,0.5,0.75,1)")  # fmt: skip
    add("--trials", type=cli.count(2), default=20, help="texts of each length (default: 20)")
    add("--candidates", type=cli.count(2), default=32, help="words to choose from (default: 32)")
    add("--tasks", nargs="?", const="", metavar="FILE",
        help="tasks of a JSON file such as configs/tasks/python.json; without FILE, those of the "
        "run's eval.tasks (docs/evaluation.md)")  # fmt: skip
    add(
        "--recall",
        action="store_true",
        help="train a small model of each kind on associative recall (MQAR, arXiv 2312.04927), or "
        "on the task of --recall-preset",
    )
    add("--memories", type=cli.several(cli.one_of(*KINDS)), default=list(KINDS),
        help=f"kinds of layer that --recall trains (default: {', '.join(KINDS)})")  # fmt: skip
    add(
        "--recall-preset",
        choices=sorted(PRESETS),
        default="cpu",
        help="task and sizes of --recall (default: cpu)",
    )
    add("--compile", action="store_true", help="torch.compile the blocks of --recall's models")
    add("--set", action="append", default=[], dest="overrides", metavar="[MEMORY:]KEY=VALUE",
        help="override a setting of what --recall trains, for all memories or for one, such as "
        "recall.steps=2000 or delta:model.memory.n_heads=1 (repeatable)")  # fmt: skip
    args = parser.parse_args()
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    written = {"--json": args.json if args.json != "-" else None, "--report": args.report}
    for flag, path in written.items():
        if path and Path(path).is_dir():
            hint = ", or --json last" if flag == "--json" else ""
            raise UserError(f"{flag} {path} is a folder; expected a file{hint}")
        if path and not Path(path).parent.is_dir():
            raise UserError(f"{flag} {path} lies in no folder that exists; expected one that does")
    if not args.checkpoints and not args.recall:
        raise UserError("there is nothing to evaluate; expected a checkpoint, or --recall")
    if args.overrides and not args.recall:
        raise UserError("--set changes what --recall trains; a checkpoint brings its own settings")
    if args.data and args.text:
        raise UserError("--data and --text both name a text; expected one of them")
    args.device = find_device(args.device)


def _asked(args: argparse.Namespace) -> bool:
    flags = (args.by_position, args.compare, args.reset_ablation, args.needle, args.pairs)
    return any(flags) or args.tasks is not None


def _subject(path: Path, args: argparse.Namespace) -> Subject:
    """Load a checkpoint and take all measurements that are asked for."""
    trained = load_trained(best_checkpoint(path) if args.best else path, args.device)
    seq_len = _length(trained, args.seq_len or trained.config.data.seq_len, "--seq-len")
    names = [other.name for other in args.checkpoints]
    found = subject(trained, path.name if names.count(path.name) == 1 else str(path), seq_len)
    source = TextSource(args.data, args.split, args.text, args.max_tokens)
    found.read = read_of(trained, source)
    losses = partial(token_losses, trained.model)
    if args.loss or not _asked(args):
        read = counted(batches(trained, source, seq_len, args.batch_size))
        found.loss = _loss(trained, read, args)
    if args.by_position:
        read = counted(batches(trained, source, seq_len, args.batch_size))
        bins = octaves(seq_len, args.per_octave)
        found.by_position = loss_by_position(losses, read, bins, args.seed)
    if args.compare:
        near, far = args.compare
        _length(trained, far[1], "the last number of --compare")
        windows = windows_of(documents(trained, source, far[1] + 1), far[1], args.windows)
        found.same_tokens = compare_spans(losses, windows, near, far, args.seed)
    if args.reset_ablation:
        long = documents(trained, source, seq_len + 1)
        windows = windows_of(long, seq_len, args.windows)
        ks, targets = contexts(seq_len), args.targets
        found.effective_context = effective_context(losses, windows, ks, targets, args.tolerance)
    if args.needle:
        found.needle = _needle(trained, source, seq_len, args)
    if args.pairs:
        found.pairs = _pairs(trained, source, seq_len, args)
    if args.tasks is not None:
        size = {"seq_len": seq_len, "batch_size": args.batch_size}
        found.tasks = ask_tasks(trained, source, *_tasks(trained, args.tasks), **size)
    return found


def _tasks(trained: Trained, file: str) -> tuple[dict[str, Any], str]:
    """Return the tasks to measure, and where they are given, for messages."""
    given = read_json(file) if file else trained.config.eval.tasks
    if not isinstance(given, dict) or not given:
        where = file or f"eval.tasks of {trained.path}"
        raise UserError(
            f"{where} names no task; expected --tasks FILE, an object of tasks by their names"
        )
    return given, file or "eval.tasks"


def _length(trained: Trained, length: int, flag: str) -> int:
    model = trained.config.model
    if model.position == "learned" and length > model.max_seq_len:
        raise UserError(
            f"{flag} is {length}; expected 1 to {model.max_seq_len}, the model's positions"
        )
    return length


def _loss(trained: Trained, read: Iterable[Batch], args: argparse.Namespace) -> LossResult:
    world = World(0, 1, 0, 1, args.device)

    def loss_sum(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return trained.model(batch.tokens, batch.targets, batch.layout)

    full = (pad_rows(batch, args.batch_size) for batch in read)
    found = mean_loss(loss_sum, full, trained.tokenizer.token_bytes(), world)
    if not found.tokens:
        raise UserError(f"the text read for {trained.path} has no token to predict; expected more")
    return found


def _needle(
    trained: Trained, source: TextSource, seq_len: int, args: argparse.Namespace
) -> NeedleResult:
    lengths, texts = _haystacks(trained, source, seq_len, args)
    read = partial(last_log_probs, trained.model)
    depths, counts = sorted(args.needle_depths), (args.trials, args.candidates)
    with _told_of("--needle"):
        return Needles(trained.tokenizer, texts, lengths, depths, *counts, args.seed).ask(read)


def _pairs(
    trained: Trained, source: TextSource, seq_len: int, args: argparse.Namespace
) -> PairsResult:
    lengths, texts = _haystacks(trained, source, seq_len, args)
    read = partial(last_log_probs, trained.model)
    counts = {"trials": args.trials, "candidates": args.candidates, "seed": args.seed}
    pairs = sorted(args.pairs)
    with _told_of("--pairs"):
        return KeyValues(trained.tokenizer, texts, lengths, pairs, **counts).ask(read)


@contextmanager
def _told_of(flag: str) -> Iterator[None]:
    """Put the measurement's flag before the message of a mistake, which names a task's settings."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag}: {error}") from None


def _haystacks(
    trained: Trained, source: TextSource, seq_len: int, args: argparse.Namespace
) -> tuple[list[int], list[np.ndarray]]:
    """Return the lengths of texts with hidden sentences, and documents long enough for them all."""
    asked = args.needle_lengths or [seq_len // 4, seq_len // 2, seq_len]
    lengths = [_length(trained, length, "--needle-lengths") for length in sorted(asked)]
    return lengths, documents(trained, source, max(lengths))


def _recall(args: argparse.Namespace) -> list[RecallResult]:
    configs = [recall_config(kind, args.recall_preset, args.overrides) for kind in args.memories]
    log = partial(print, file=sys.stderr, flush=True)
    return [
        train_recall(kind, *config, args.device, args.compile, log)
        for kind, config in zip(args.memories, configs, strict=True)
    ]


def _figures(found: Subject) -> dict[str, Any]:
    head: dict[str, Any] = {"checkpoint": found.checkpoint, "step": found.step}
    names = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")
    return head | {name: getattr(found.loss, name) for name in names}


def _print(figures: dict[str, Any]) -> None:
    for name, value in figures.items():
        form = {int: "{:,}", float: "{:,.4f}", str: "{}"}[type(value)]
        print(f"{name.replace('_', ' '):<14} {form.format(value)}")


def _write_json(path: str, figures: dict) -> None:
    try:
        write_json(path, figures)
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    cli.run(main)
