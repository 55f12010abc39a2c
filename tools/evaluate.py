#!/usr/bin/env python3
"""Loss, perplexity and bits per byte of a checkpoint: python tools/evaluate.py RUN_OR_CHECKPOINT

Reads the validation split of the run's own data, another prepared set (--data), or a text file
(--text); the checkpoint brings its config and tokenizer along.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gam_scale import cli
from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.config import DataSetConfig
from gam_scale.data.packing import Batch, make_batch, num_sequences
from gam_scale.data.stream import open_split, valid_batches
from gam_scale.errors import UserError
from gam_scale.evaluate.loss import LossResult, mean_loss
from gam_scale.parallel.world import World


def main() -> None:
    """Parse, load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="run directory (its newest) or step-* folder")
    parser.add_argument("--data", help="prepared set to read instead of the run's own")
    parser.add_argument("--split", default="valid", help="train, valid (default) or test")
    parser.add_argument("--text", type=Path, help="a text file to read instead, as one document")
    parser.add_argument("--seq-len", type=int, help="context per sequence (the training's)")
    parser.add_argument("--max-tokens", type=int, default=0, help="stop after so many; 0: all (0)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per forward pass (8)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    trained = load_trained(args.checkpoint, args.device)
    seq_len = _seq_len(trained, args.seq_len)
    batches = _text(trained, args, seq_len) if args.text else _split(trained, args, seq_len)
    result = _measure(trained, batches, args)
    _print(trained, result, as_json=args.json)


def _seq_len(trained: Trained, asked: int | None) -> int:
    model = trained.config.model
    seq_len = asked or trained.config.data.seq_len
    if seq_len < 1 or (model.position == "learned" and seq_len > model.max_seq_len):
        raise UserError(
            f"--seq-len is {seq_len}; expected 1 to {model.max_seq_len}, the model's positions"
        )
    return seq_len


def _split(trained: Trained, args: argparse.Namespace, seq_len: int) -> Iterator[Batch]:
    data = trained.config.data
    sets = [DataSetConfig(args.data)] if args.data else data.sets
    cache = data.cache_dir or str(Path(trained.config.log.run_dir) / "cache")
    splits = open_split(sets, args.split, cache, trained.tokenizer.sha256)
    return valid_batches(splits, seq_len, data.documents, args.batch_size, 0, 1, args.max_tokens)


def _text(trained: Trained, args: argparse.Namespace, seq_len: int) -> Iterator[Batch]:
    try:
        text = args.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {args.text} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise UserError(f"--text {args.text} is empty; expected some text")
    bos = trained.tokenizer.bos_id
    ids = np.array([bos, *trained.tokenizer.encode(text)], np.int64)
    if args.max_tokens:
        ids = ids[: args.max_tokens + 1]
    rows = [ids[i * seq_len :][: seq_len + 1] for i in range(num_sequences(len(ids), seq_len))]
    for start in range(0, len(rows), args.batch_size):
        part = rows[start : start + args.batch_size]
        yield make_batch(part, seq_len, bos, trained.config.data.documents)


def _measure(trained: Trained, batches: Iterator[Batch], args: argparse.Namespace) -> LossResult:
    world = World(0, 1, 0, 1, torch.device(args.device))

    def loss_sum(batch: Batch) -> torch.Tensor:
        with torch.no_grad():
            return trained.model(batch.tokens, batch.targets, batch.positions)

    return mean_loss(loss_sum, batches, args.batch_size, trained.tokenizer.token_bytes(), world)


def _print(trained: Trained, result: LossResult, *, as_json: bool) -> None:
    figures = {
        "checkpoint": str(trained.path),
        "step": trained.step,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "bytes": result.bytes,
    }
    if as_json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        text = (
            f"{value:,.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if name != "checkpoint"
            else value
        )
        print(f"{name.replace('_', ' '):<14} {text}")


if __name__ == "__main__":
    cli.run(main)
