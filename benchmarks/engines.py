#!/usr/bin/env python3
"""Step time and memory per rank of every engine and stage, beside a raw loop, in one run.

    python -m benchmarks.engines [--ranks 1,2] [--paired] [--batch 8 --seq-len 256 --d-model 512]

``raw`` is model, backward, clipping and fused AdamW called by hand, without any engine of ours.
Each row runs on ranks of its own. ``ms/step`` is the median of the timed steps, of the slowest
rank. ``vs raw`` divides it by the raw loop's time on as many ranks; all rows have the same batch
size per rank. ``held`` is what rank 0 keeps in tensors between steps (parameters, moments,
buffers): every live storage, counted once. ``process`` is rank 0's peak resident size.

``--paired`` is for a machine that is not quite idle: each timed step is followed by a step of the
raw loop in the same process, and ``vs raw`` is the median of their quotients. ``process`` then
includes both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from benchmarks.memory import live_storages
from benchmarks.train_step import synchronise
from gam_scale import cli
from gam_scale.config import RunConfig
from gam_scale.data.packing import Batch, plain_batch
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.memory import peak_memory_bytes
from gam_scale.hardware.processor import find_device
from gam_scale.model.lm import build_model
from gam_scale.parallel import world as ranks
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World
from gam_scale.strict import from_dict
from gam_scale.train.step import train_step

ROWS: dict[str, dict] = {
    "raw": {"engine": "torch"},
    "torch": {"engine": "torch"},
    "zero 0": {"engine": "deepspeed", "zero_stage": 0},
    "zero 1": {"engine": "deepspeed", "zero_stage": 1},
    "zero 2": {"engine": "deepspeed", "zero_stage": 2},
    "zero 3": {"engine": "deepspeed", "zero_stage": 3},
    "fsdp": {"engine": "fsdp"},
}


def main() -> None:
    """Run each row on each number of ranks, and print the table."""
    args = parse()
    if args.row:
        report(args)
        return
    print(f"batch {args.batch} per rank, T {args.seq_len}, d_model {args.d_model}, ", end="")
    print(f"{args.n_layers} layers, fp32, {args.device}, torch {torch.__version__}")
    base = "raw" if args.paired else args.rows[0]
    print(f"| engine | ranks | ms/step | vs {base} | held | process |")
    print("|---|--:|--:|--:|--:|--:|")
    for n in args.ranks:
        raw = None
        for name in args.rows:
            r = launch(name, n)
            raw = raw or r["ms"]
            cells = [name, str(n), f"{r['ms']:.0f}", f"{r.get('quotient', r['ms'] / raw):.3f}"]
            cells += [f"{r['held'] / 1e6:.0f} MB", f"{r['process'] / 1e6:.0f} MB"]
            print("| " + " | ".join(cells) + " |", flush=True)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ranks",
        type=cli.several(cli.count()),
        default=[1, 2],
        help="numbers of ranks, comma-separated (default: 1,2)",
    )
    parser.add_argument(
        "--rows",
        type=cli.several(cli.one_of(*ROWS)),
        default=list(ROWS),
        help="rows to measure, the first of which is the base",
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    cli.add_device(parser)
    parser.add_argument(
        "--batch", type=cli.count(), default=8, help="sequences per rank and step (default: 8)"
    )
    add_sizes(parser)
    parser.add_argument("--steps", type=cli.count(), default=10, help="timed steps (default: 10)")
    parser.add_argument(
        "--paired", action="store_true", help="time each step beside one of the raw loop"
    )
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add options for the sizes of the model and its sequences; the paper's are the defaults."""
    parser.add_argument("--seq-len", type=cli.count(), default=256)
    parser.add_argument("--d-model", type=cli.count(), default=512)
    parser.add_argument("--n-layers", type=cli.count(), default=6)
    parser.add_argument("--vocab-size", type=cli.count(), default=10_000)


def launch(
    row: str, n_ranks: int, module: str = "benchmarks.engines", more: Sequence[str] = ()
) -> dict:
    """Run ``module`` on ranks with our own arguments and ``more``; return rank 0's figures."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "-m", module, *sys.argv[1:], "--row", row, *more]
    processes = []
    for rank in range(n_ranks):
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(n_ranks)}
        env |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(n_ranks)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        env |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
        out = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=env, stdout=out, text=True))
    output = processes[0].communicate()[0]
    if any(process.wait() for process in processes):
        sys.exit(f"{row} on {n_ranks} ranks failed")
    return json.loads(output.splitlines()[-1])


def report(args: argparse.Namespace) -> None:
    """Measure one row as one of its ranks."""
    world = ranks.start(args.device)
    config = run_config(args, world, ROWS[args.row])
    compiled = can_compile(world.device)[0]
    make = raw_step if args.row == "raw" else engine_step
    step = make(config, world, compiled)
    for _ in range(3):
        step()
    held = sum(live_storages().values())
    beside = raw_step(config, world, compiled) if args.paired else None
    if beside:
        beside()
    times, quotients = [], []
    for _ in range(args.steps):
        times.append(seconds(step, world))
        if beside:
            quotients.append(times[-1] / seconds(beside, world))
    slowest = torch.tensor(statistics.median(times), dtype=torch.float64, device=world.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    figures = {"ms": float(slowest) * 1e3, "held": held}
    figures["process"] = peak_memory_bytes(world.device)
    if quotients:
        figures["quotient"] = statistics.median(quotients)
    if world.is_main:
        print(json.dumps(figures))
    world.barrier()
    ranks.stop()


def seconds(step: Callable[[], object], world: World) -> float:
    """Return the seconds of one step, from when all ranks are ready."""
    world.barrier()
    start = time.perf_counter()
    step()
    synchronise(world.device)
    return time.perf_counter() - start


def run_config(args: argparse.Namespace, world: World, parallel: dict) -> RunConfig:
    """Return the paper's model, with dropout, at the width and depth that are asked for."""
    return from_dict(
        RunConfig,
        {
            "model": {
                "d_model": args.d_model,
                "n_layers": args.n_layers,
                "vocab_size": args.vocab_size,
                "max_seq_len": args.seq_len,
            },
            "data": {"sets": [{"path": "unused"}], "seq_len": args.seq_len},
            "train": {
                "steps": 1000,
                "micro_batch_size": args.batch,
                "global_batch_size": args.batch * world.world_size,
            },
            "parallel": parallel,
        },
    )


def batch_of(config: RunConfig, world: World) -> Batch:
    """Return a batch of random tokens, which differ between ranks."""
    generator = torch.Generator().manual_seed(world.rank)
    shape = (config.train.micro_batch_size, config.data.seq_len + 1)
    tokens = torch.randint(config.model.vocab_size, shape, generator=generator)
    batch = plain_batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return batch.to(world.device)


def engine_step(config: RunConfig, world: World, compiled: bool) -> Callable[[], object]:
    """Return a step of a new strategy, in the form that the training loop calls."""
    strategy = build_strategy(config, world.arranged(config.parallel), compiled=compiled)
    initialise(strategy, config)
    return step_of(strategy, config)


def step_of(strategy: Strategy, config: RunConfig) -> Callable[[], object]:
    """Return a step of an initialised strategy, on one batch of random tokens."""
    world = strategy.world
    batch = batch_of(config, world)
    n_targets = batch.targets.numel() * world.world_size
    return lambda: train_step(strategy, [batch], 3e-4, n_targets=n_targets)


def raw_step(config: RunConfig, world: World, compiled: bool) -> Callable[[], None]:
    """Return a step of the same model without an engine; on several ranks each trains alone."""
    model = build_model(config.model, 0, world.device)
    prepare_blocks(model, config.train.recompute, compiled=compiled)
    optimizer = build_optimizer(model, config)
    batch = batch_of(config, world)

    def step() -> None:
        loss = model(batch.tokens, batch.targets) / batch.targets.numel()
        loss.backward()
        float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    cli.run(main)
