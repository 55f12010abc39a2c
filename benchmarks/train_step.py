#!/usr/bin/env python3
"""Speed and memory of one training step, each model beside a plain eager GAM, in one run.

    python -m benchmarks.train_step [--device cuda --precision bf16] [--batch 8 --seq-len 256]

Every row runs in a process of its own: forward, backward, clipping and AdamW on random tokens.
Time is the median over ``--steps`` steps. ``of matmul`` divides the model's own FLOPs per second
by the rate of large matrix products measured in the same process, right before. ``tensors`` is
the most bytes that parameters, gradients, optimizer state, activations and workspaces took at once
(torch's allocator counts them); ``process`` is the peak resident size, which torch itself and, for
compiled rows, its compiler are part of.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.plain_gam import PlainGAM
from gam_scale import cli
from gam_scale.config import ModelConfig, RunConfig, TrainConfig
from gam_scale.data.packing import plain_batch
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.memory import (
    allocated_at_most,
    keep_freed_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from gam_scale.hardware.processor import find_device
from gam_scale.model.linear import linear
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.parts import MIXERS
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.optimizer import GroupedOptimizer, build_optimizer
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.world import World
from gam_scale.train.step import train_step

ROWS = ("plain", "gam", "gam:full", "attention", "mamba")
LR = 3e-4


def main() -> None:
    """Run each row in a process, and print the table."""
    args = parse()
    if args.row:
        print(json.dumps(measure(args)))
        return
    rows = {name: child(name) for name in args.rows}
    plain = rows.get("plain")
    print(f"batch {args.batch}, T {args.seq_len}, {args.precision}, {args.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    header = ("model", "run", "ms/step", "tokens/s", "GFLOP/s", "of matmul", "tensors", "process")
    print("| " + " | ".join(header) + " | vs plain |")
    print("|---|---|" + "--:|" * 7)
    for name, r in rows.items():
        cells = [name, r["mode"], f"{r['ms']:.0f}", f"{r['tokens_per_s']:,.0f}"]
        cells += [f"{r['gflops']:.0f}", f"{r['of_matmul']:.1%}"]
        cells += [f"{r['tensor_bytes'] / 1e6:.0f} MB", f"{r['process_bytes'] / 1e6:.0f} MB"]
        if plain:
            speed, memory = plain["ms"] / r["ms"], r["tensor_bytes"] / plain["tensor_bytes"]
            cells.append(f"{speed:.2f}x speed, {memory:.2f}x tensors")
        print("| " + " | ".join(cells) + " |")


def _row(text: str) -> str:
    block, colon, recompute = text.partition(":")
    cli.one_of("plain", "gam", *MIXERS)(block)
    if colon:
        cli.one_of("none", "selective", "full")(recompute)
    return text


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        type=cli.several(_row),
        default=list(ROWS),
        help="rows to measure: plain, gam or a kind of layer, each with :RECOMPUTE if "
        f"train.recompute is not to be {TrainConfig.recompute} (default: {', '.join(ROWS)})",
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    cli.add_device(parser)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    add_sizes(parser)
    parser.add_argument("--steps", type=cli.count(), default=10, help="timed steps (default: 10)")
    parser.add_argument("--eager", action="store_true", help="do not compile our models")
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add options for the sizes of the step and the model, the paper's by default."""
    parser.add_argument(
        "--batch", type=cli.count(), default=8, help="sequences per step (default: 8)"
    )
    parser.add_argument(
        "--seq-len", type=cli.count(), default=256, help="tokens per sequence (default: 256)"
    )
    parser.add_argument("--d-model", type=cli.count(), default=512)
    parser.add_argument("--n-layers", type=cli.count(), default=6)
    parser.add_argument("--vocab-size", type=cli.count(), default=10_000)


def child(row: str) -> dict:
    """Measure one row in its own process, so that peaks belong to this row alone."""
    command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--row", row]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace) -> dict:
    """Measure the median step time and peak memory of one row."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    block, _, recompute = args.row.partition(":")
    ours = block != "plain"
    config = model_config(args, block)
    if ours:
        keep_freed_memory()  # as every CPU run of ours does
    model = build_model(config, 0, device) if ours else PlainGAM(config).to(device)
    compiled = ours and not args.eager and can_compile(device)[0]
    if isinstance(model, LanguageModel):
        prepare_blocks(model, recompute or TrainConfig.recompute, compiled=compiled)
    optimizer = optimizer_of(model)
    tokens = torch.randint(config.vocab_size, (args.batch, args.seq_len + 1), device=device)
    step = stepper(model, optimizer, tokens, args)
    for _ in range(3):
        step()
    rate = matmul_rate(device, args.precision)
    reset_peak_memory(device)
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - start)
    process_bytes = peak_memory_bytes(device)
    seconds = statistics.median(times)
    flops = 3 * counted_as(config).flops_per_token(args.seq_len) * args.batch * args.seq_len
    return {
        "mode": "compiled" if compiled else "eager",
        "ms": seconds * 1e3,
        "tokens_per_s": args.batch * args.seq_len / seconds,
        "gflops": flops / seconds / 1e9,
        "of_matmul": flops / seconds / rate,
        "tensor_bytes": peak_tensor_bytes(step, device, model, optimizer),
        "process_bytes": process_bytes,
    }


def model_config(args: argparse.Namespace, block: str) -> ModelConfig:
    """Return the paper's model at the width and depth that are asked for."""
    return ModelConfig(
        layers=["static" if block in ("plain", "gam") else block],
        d_model=args.d_model,
        n_layers=args.n_layers,
        vocab_size=args.vocab_size,
        max_seq_len=args.seq_len,
    )


def counted_as(config: ModelConfig) -> LanguageModel:
    """Return a model of the same shape without weights, to count its FLOPs."""
    with torch.device("meta"):
        return LanguageModel(config)


def optimizer_of(model: LanguageModel | PlainGAM) -> GroupedOptimizer | torch.optim.AdamW:
    """Return the optimizer that runs use for our models; for the plain row, torch's own AdamW."""
    if isinstance(model, PlainGAM):
        return torch.optim.AdamW(model.parameters(), lr=LR)
    config = RunConfig(model=model.config, train=TrainConfig(lr=LR))
    return build_optimizer(model, config)


def stepper(
    model: LanguageModel | PlainGAM,
    optimizer: GroupedOptimizer | torch.optim.AdamW,
    tokens: torch.Tensor,
    args: argparse.Namespace,
) -> Callable[[], object]:
    """Return one whole training step as a function; for our models, the step that runs take."""
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    bf16 = args.precision == "bf16"

    if isinstance(optimizer, GroupedOptimizer):
        assert isinstance(model, LanguageModel)
        world = World(0, 1, 0, 1, torch.device(args.device))
        strategy = PlainStrategy(model, optimizer, world, args.precision)
        batch = plain_batch(inputs, targets)
        return lambda: train_step(strategy, [batch], LR, n_targets=targets.numel())

    def step() -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
            loss = model(inputs, targets) / targets.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def matmul_rate(device: torch.device, precision: str, n: int = 2048) -> float:
    """Measure the FLOP/s of an n x n x n product in the fastest library: the best of ten."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = time.perf_counter()
        linear(a, b)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def peak_tensor_bytes(
    step: Callable[[], object],
    device: torch.device,
    model: LanguageModel | PlainGAM,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Return the most bytes in tensors during a step: those kept between steps plus its peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    held: list[torch.Tensor] = [*model.parameters()]
    held += [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return allocated_at_most(step) + sum(t.numel() * t.element_size() for t in held)


def synchronise(device: torch.device) -> None:
    """Wait for the device's queue, if it has one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    cli.run(main)
