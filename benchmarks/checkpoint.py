#!/usr/bin/env python3
"""Cost of a checkpoint: how long training stands still, and the memory that loading takes.

    python -m benchmarks.checkpoint [--engine fsdp] [--ranks 2] [--d-model 512 --n-layers 6 ...]

Saving, once in the background and once not: ``blocked`` is how long the training thread stands
still, at the start of a save and when the checkpoint is made visible. ``slower`` is how much longer
the steps in between take than the steps before. ``stall`` is the sum of these two, ``on disk`` the
time from the start until the checkpoint is visible. All are medians of ``--saves`` saves, of the
slowest rank.

Loading, into an engine whose memory has all been touched before: ``torch adds`` is the most that
torch's allocator gives out at once, ``process adds`` the growth of the process's peak resident
size. Compare both with ``one parameter``, the largest part of a parameter that a rank holds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.engines import ROWS, add_sizes, launch, run_config, step_of
from benchmarks.train_step import synchronise
from gam_scale import cli
from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.memory import allocated_at_most, peak_memory_bytes, reset_peak_memory
from gam_scale.hardware.processor import find_device
from gam_scale.parallel import world as ranks
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World
from gam_scale.train.saver import Saver


def main() -> None:
    """Save both ways, load, and print two tables."""
    args = parse()
    if args.row:
        report(args)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        args.folder = folder
        print(f"{args.engine}, {args.ranks} rank(s), batch {args.batch} per rank, ", end="")
        print(f"d_model {args.d_model}, {args.n_layers} layers, fp32, {args.device}")
        print("| saving | ms/step | blocked | slower | stall | on disk | bytes |")
        print("|---|--:|--:|--:|--:|--:|--:|")
        for row in ("background", "synchronous"):
            r = launch(row, args.ranks, "benchmarks.checkpoint", ["--folder", folder])
            cells = [row, *(f"{r[key]:.0f}" for key in ("step", "blocked", "slower", "stall"))]
            cells += [f"{r['on_disk'] / 1e3:.1f} s", f"{r['bytes'] / 1e6:.0f} MB"]
            print("| " + " | ".join(cells) + " |", flush=True)
        r = launch("load", args.ranks, "benchmarks.checkpoint", ["--folder", folder])
        print("\n| loading | own part | one parameter | torch adds | process adds |")
        print("|---|--:|--:|--:|--:|")
        cells = [f"{r[key] / 1e6:.1f} MB" for key in ("own", "parameter", "torch", "process")]
        print(f"| {r['seconds']:.2f} s | " + " | ".join(cells) + " |")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", default="fsdp", choices=list(ROWS)[1:])
    parser.add_argument("--ranks", type=cli.count(), default=2)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help="folder for the checkpoints (default: a temporary one)")
    cli.add_device(parser)
    parser.add_argument(
        "--batch", type=cli.count(), default=4, help="sequences per rank and step (default: 4)"
    )
    add_sizes(parser)
    parser.add_argument(
        "--steps", type=cli.count(), default=6, help="timed steps before each save (default: 6)"
    )
    parser.add_argument("--saves", type=cli.count(), default=3)
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def report(args: argparse.Namespace) -> None:
    """Measure one row as one of its ranks, and print the largest value of each over all ranks."""
    world = ranks.start(args.device)
    config = run_config(args, world, ROWS[args.engine])
    world = world.arranged(config.parallel)
    store = CheckpointStore(Path(args.folder) / "checkpoints")
    compiled = can_compile(world.device)[0]
    strategy = build_strategy(config, world, compiled=compiled)
    if args.row == "load":
        figures = load(strategy, store)
    else:
        background = args.row == "background"
        settings = replace(config.checkpoint, background=background, keep_last=1)
        initialise(strategy, config)
        saver = Saver(store, world, replace(config, checkpoint=settings), b"")
        figures = save(strategy, config, saver, args.steps, args.saves)
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=world.device)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    if world.is_main:
        print(json.dumps(dict(zip(figures, values.tolist(), strict=True))))
    world.barrier()
    ranks.stop()


def save(
    strategy: Strategy, config: RunConfig, saver: Saver, n_steps: int, n_saves: int
) -> dict[str, float]:
    """Return milliseconds of steps without and with a save, and the checkpoint's bytes."""
    world = strategy.world
    step = step_of(strategy, config)
    for _ in range(3):
        step()
    first = saver.store.steps()[-1] if saver.store.steps() else 0
    saves = []
    for n in range(1, n_saves + 1):
        usual = statistics.median(_timed(step, world) for _ in range(n_steps))
        state = TrainState(step=first + n)
        begin = time.perf_counter()
        start = partial(_start, saver, strategy, state)
        blocked = _timed(start, world)
        slower = 0.0
        # As in the training loop, all ranks agree that all have written.
        while world.any(saver._pending is not None and not saver.ready):
            slower += _timed(step, world) - usual
        blocked += _timed(saver.finish, world)
        on_disk = (time.perf_counter() - begin) * 1e3
        saves.append((usual, blocked, slower, blocked + slower, on_disk))
    names = ("step", "blocked", "slower", "stall", "on_disk")
    figures = dict(zip(names, map(statistics.median, zip(*saves, strict=True)), strict=True))
    files = _latest(saver.store).glob("*")
    return figures | {"bytes": sum(file.stat().st_size for file in files)}


def load(strategy: Strategy, store: CheckpointStore) -> dict[str, float]:
    """Return the bytes that loading takes beside the rank's own part, and its seconds."""
    device = strategy.world.device
    shards = strategy.shards()
    for shard in shards:
        shard.data.zero_()  # so that the first touch of the engine's own pages is not counted
    own = sum(shard.data.nbytes for shard in shards)
    reset_peak_memory(device)
    before, begin = peak_memory_bytes(device), time.perf_counter()
    CanonicalTensors(_latest(store)).load_into(shards)
    seconds = time.perf_counter() - begin
    process = peak_memory_bytes(device) - before
    adds = allocated_at_most(lambda: CanonicalTensors(_latest(store)).load_into(shards))
    largest = max(shard.data.nbytes for shard in shards)
    figures = {"own": own, "parameter": largest, "torch": adds, "process": process}
    return figures | {"seconds": seconds}


def _start(saver: Saver, strategy: Strategy, state: TrainState) -> None:
    """Start a save as the training loop does when one is due."""
    saver.start(strategy.shards(), state, is_best=False)


def _latest(store: CheckpointStore) -> Path:
    found = store.latest()
    assert found is not None, "nothing was saved"
    return found


def _timed(function: Callable[[], object], world: World) -> float:
    """Return the milliseconds that one call takes."""
    begin = time.perf_counter()
    function()
    synchronise(world.device)
    return (time.perf_counter() - begin) * 1e3


if __name__ == "__main__":
    cli.run(main)
