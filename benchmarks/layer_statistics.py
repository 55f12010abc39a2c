#!/usr/bin/env python3
"""Cost of a look at the layers (log.layers_every) in the step that takes it, by kind of layer.

    python -m benchmarks.layer_statistics [--kinds delta,slot --batch 8 --seq-len 256]

A look takes the layers' statistics. Steps with and without it alternate in one process; their
processor time is compared (on a GPU: wall time, waiting for the device), as medians over
``--pairs`` pairs. A run with a look at every N-th step takes longer by 1 / N of the share shown.
"""

import argparse
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.train_step import LR, add_sizes, model_config, synchronise
from gam_scale import cli
from gam_scale.config import MemoryConfig, ModelConfig, RunConfig, TrainConfig
from gam_scale.data.packing import plain_batch
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.processor import find_device
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.world import World
from gam_scale.train.hooks.layers import LayerStatistics
from gam_scale.train.metrics import Throughput
from gam_scale.train.step import train_step


def main() -> None:
    """Measure each kind and print the table."""
    args = parse()
    print(
        f"batch {args.batch}, T {args.seq_len}, {args.n_layers} layers of {args.d_model}, ", end=""
    )
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| kind | ms a step | ms a look | of the step |\n|---|--:|--:|--:|")
    for kind in args.kinds:
        step, look = measure(args, kind)
        print(f"| {kind} | {1e3 * step:.0f} | {1e3 * look:.0f} | {look / step:.1%} |", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kinds",
        type=cli.several(cli.one_of(*MIXERS)),
        default=list(MIXERS),
        help=f"kinds of layer (default: {', '.join(MIXERS)})",
    )
    cli.add_device(parser)
    add_sizes(parser)
    parser.add_argument(
        "--pairs", type=cli.count(), default=10, help="pairs of steps to time (default: 10)"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile the layers")
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def measure(args: argparse.Namespace, kind: str) -> tuple[float, float]:
    """Return the seconds of a step, and how many more a step with a look takes."""
    device = torch.device(args.device)
    model = build_model(with_heads(args, kind), 0, device)
    prepare_blocks(model, "selective", compiled=not args.eager and can_compile(device)[0])
    world = World(0, 1, 0, 1, device)
    optimizer = build_optimizer(model, RunConfig(model=model.config, train=TrainConfig(lr=LR)))
    strategy = PlainStrategy(model, optimizer, world, "fp32")
    tokens = torch.randint(args.vocab_size, (args.batch, args.seq_len + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    batch = plain_batch(inputs, targets)
    loop: Any = SimpleNamespace(clock=Throughput(), strategy=strategy, world=world)
    loop.config = SimpleNamespace(log=SimpleNamespace(layers_every=2))
    log: Any = SimpleNamespace(layers=lambda step, layers: None)
    hook = LayerStatistics(log, lambda: None)

    def seconds(number: int) -> float:
        loop.state = SimpleNamespace(step=number)
        synchronise(device)
        start = time.process_time() if device.type == "cpu" else time.perf_counter()
        hook.before_step(loop, [batch])
        result = train_step(strategy, [batch], LR, n_targets=targets.numel())
        loop.state.step += 1
        hook.after_step(loop, result)
        hook.between(loop)
        synchronise(device)
        return (time.process_time() if device.type == "cpu" else time.perf_counter()) - start

    for number in range(4):
        seconds(number)
    pairs = [(seconds(2 * i), seconds(2 * i + 1)) for i in range(args.pairs)]
    plain = statistics.median(without for without, _ in pairs)
    return plain, statistics.median(with_look - without for without, with_look in pairs)


def with_heads(args: argparse.Namespace, kind: str) -> ModelConfig:
    """Return a config of one kind of layer, whose memories have heads of 64 if width allows."""
    memory = MemoryConfig(n_heads=max(1, args.d_model // 64))
    return replace(model_config(args, kind), position="none", memory=memory)


if __name__ == "__main__":
    cli.run(main)
