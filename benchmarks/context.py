#!/usr/bin/env python3
"""Cost of a long context, for every memory, in one run.

    python -m benchmarks.context block      # time and memory of one block, T from 1k to 128k
    python -m benchmarks.context model      # memory of a training step of the whole model at 64k
    python -m benchmarks.context generate   # time and memory per generated token, 1k to 100k
    python -m benchmarks.context exchange   # bytes between ranks that share a sequence

``block`` times forward and backward of one compiled block on one sequence; all but the block's
input is recomputed. ``vs first`` is a length's time per token, divided by the first length's from
just before and just after, since a machine's speed drifts by more than the lengths differ; it is
the median of some such ratios. ``peak`` is the most that tensors take at once, without parameters.
``model`` counts parameters too, and also shows the peak of the process, with torch and its
compiler. Every kind runs in a process of its own. ``--lengths`` are the numbers of tokens at which
a part measures; with ``--documents``, block and model get sequences packed of documents of that
many tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import psutil
import torch
from torch import Tensor

from benchmarks.engines import launch
from benchmarks.messages import recorded
from benchmarks.plain_gam import PlainGAM
from benchmarks.train_step import synchronise
from gam_scale import cli
from gam_scale.config import MemoryConfig, ModelConfig, ParallelConfig
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.memory import allocated_at_most, keep_freed_memory, peak_memory_bytes
from gam_scale.hardware.processor import find_device
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.model.parts import MIXERS
from gam_scale.parallel import world as ranks
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.context import SequenceContext

KINDS = tuple(MIXERS)
LENGTHS = {
    "block": [1 << 10, 1 << 13, 1 << 16, 1 << 17],
    "model": [1 << 16],
    "generate": [1_000, 10_000, 50_000, 100_000],
    "exchange": [1 << 10, 1 << 13, 1 << 16, 1 << 17],
}
"""Tokens at which each part measures without --lengths."""
PLAIN = 1 << 13
"""Longest sequence of the plain eager model, which keeps every activation."""
FITS = 1 << 14
"""Longest sequence on which attention is measured: past it, a CPU takes minutes for a block."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ROUNDS = 3
"""Timings of each length of a block, each of them between two timings of the first length."""
SHORT_STEP = 1 << 10
"""Tokens of the short step with which ``model`` compares a long step's time per token."""


def main() -> None:
    """Run one part's rows and print its table."""
    args = parse()
    if args.row:
        keep_freed_memory()  # as every run does
        print(json.dumps(globals()[f"{args.part}_row"](args)))
        return
    globals()[args.part](args)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=LENGTHS)
    kinds, lengths = cli.several(cli.one_of(*KINDS)), cli.several(cli.count())
    parser.add_argument(
        "--kinds", type=kinds, default=list(KINDS), help="kinds of layer to measure (default: all)"
    )
    parser.add_argument("--lengths", type=lengths, help="tokens to measure at (default: by part)")
    parser.add_argument("--d-model", type=cli.count(), default=512)
    parser.add_argument(
        "--n-layers", type=cli.count(), default=6, help="layers, in model and generate"
    )
    parser.add_argument("--vocab-size", type=cli.count(), default=10_000)
    parser.add_argument(
        "--documents",
        type=cli.count(0),
        default=0,
        help="tokens of each document; 0: one stream (default: 0)",
    )
    parser.add_argument(
        "--dropout",
        type=cli.number(at_least=0, below=1),
        default=0.0,
        help="as model.dropout (default: 0)",
    )
    cli.add_device(parser)
    parser.add_argument(
        "--clock",
        default="wall",
        choices=CLOCKS,
        help="clock of block and model; cpu: the threads' own time, for a machine that has other "
        "work (default: wall)",
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--length", type=cli.count(0), default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device = find_device(args.device).type
    args.lengths = sorted(set(args.lengths or LENGTHS[args.part]))
    return args


def make_model(args: argparse.Namespace, kind: str, n_layers: int) -> LanguageModel:
    """Build a stack of one kind of layer, without positions, so without a longest sequence."""
    config = ModelConfig(
        layers=[kind],
        d_model=args.d_model,
        n_layers=n_layers,
        vocab_size=args.vocab_size,
        position="none",
        dropout=args.dropout,
        memory=MemoryConfig(n_heads=max(1, args.d_model // 64)),
    )
    return build_model(config, 0, args.device)


def layout_of(args: argparse.Namespace, length: int) -> Layout:
    """Return the layout of one sequence, with the documents that the command line asks for."""
    layout = Layout.stream(1, length)
    if args.documents:
        layout = Layout.of(torch.arange(length)[None] % args.documents)
    return layout.to(args.device)


def run(args: argparse.Namespace, row: str, length: int = 0) -> dict:
    """Measure one row in a process of its own and return its figures."""
    command = [sys.executable, "-m", "benchmarks.context", *sys.argv[1:]]
    command += ["--row", row, "--length", str(length)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def block(args: argparse.Namespace) -> None:
    """Print time per token and peak memory of a block against T."""
    print(f"one block, d_model {args.d_model}, fp32, {args.device}, torch {torch.__version__}")
    print("| layer | T | us/token | vs first | peak | peak per token |")
    print("|---|--:|--:|--:|--:|--:|")
    for kind in args.kinds:
        for length, r in run(args, kind)["lengths"].items():
            cells = [kind, f"{int(length):,}", f"{r['us']:.1f}", f"{r['ratio']:.3f}"]
            cells += [f"{r['peak'] / 1e6:,.0f} MB", f"{r['peak'] / int(length) / 1e3:.1f} kB"]
            print("| " + " | ".join(cells) + " |", flush=True)


def block_row(args: argparse.Namespace) -> dict:
    """Measure time per token and peak memory at every length."""
    device = torch.device(args.device)
    net = make_model(args, args.row, 1)
    prepare_blocks(net, "full", compiled=can_compile(device)[0])
    lengths = [n for n in args.lengths if args.row != "attention" or n <= FITS]
    steps = {n: block_step(args, net, n) for n in lengths}
    for step in steps.values():
        step()

    def per_token(length: int) -> float:
        return seconds(steps[length], max(1, TIMED // length), args.clock) / length

    first = lengths[0]
    times = {n: [beside(per_token, n, first) for _ in range(ROUNDS)] for n in lengths}
    inputs = 2 * 4 * args.d_model  # bytes a token of x and its output's gradient
    found = {
        n: {
            "us": statistics.median(time for time, _ in times[n]) * 1e6,
            "ratio": statistics.median(time / of_first for time, of_first in times[n]),
            "peak": most_bytes(step, device) + inputs * n,
        }
        for n, step in steps.items()
    }
    return {"lengths": found}


TIMED = 1 << 15
"""Tokens of one timing, in which a shorter sequence is repeated until it has as many."""


def seconds(step: Callable[[], None], repeats: int, clock: str) -> float:
    """Return the mean time of a step."""
    start = CLOCKS[clock]()
    for _ in range(repeats):
        step()
    return (CLOCKS[clock]() - start) / repeats


def beside(per_token: Callable[[int], float], length: int, first: int) -> tuple[float, float]:
    """Return the time per token of a length, and the mean of the first length's around it."""
    before = per_token(first)
    time = per_token(length)
    return time, (before + per_token(first)) / 2


def most_bytes(step: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes that tensors made in ``step`` take at once."""
    if device.type == "cpu":
        return allocated_at_most(step)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def block_step(args: argparse.Namespace, net: LanguageModel, length: int) -> Callable[[], None]:
    """Return a step: forward and backward of one block on one sequence, then gradients dropped."""
    device = torch.device(args.device)
    x = torch.randn(1, length, args.d_model, device=device, requires_grad=True)
    grad, layout = torch.randn_like(x), layout_of(args, length)

    def step() -> None:
        net.blocks[0](x, layout).backward(grad)
        x.grad = None  # at the end, so that no gradients are in the next step's peak
        net.zero_grad(set_to_none=True)
        synchronise(device)

    return step


def model(args: argparse.Namespace) -> None:
    """Print a training step of every kind at each length and 1k; of the plain model up to 8k."""
    print(f"training step of {args.n_layers} layers, d_model {args.d_model}, one sequence, fp32")
    print(f"| model | T | tensors | process peak | us/token | at {SHORT_STEP:,} | ratio |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    rows = [("plain", n) for n in sorted({min(PLAIN, n) for n in args.lengths})]
    rows += [(kind, n) for kind in args.kinds for n in args.lengths]
    for kind, length in rows:
        if kind == "attention" and length > FITS:
            continue
        r = run(args, kind, length)
        cells = [kind, f"{length:,}", f"{r['tensors'] / 1e9:.2f} GB", f"{r['peak'] / 1e9:.2f} GB"]
        cells.append(f"{r['us']:.0f}")
        cells += [f"{r['few']:.0f}", f"{r['us'] / r['few']:.3f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def model_row(args: argparse.Namespace) -> dict:
    """Measure one long step between two runs of short ones; parameters and gradients count."""
    device = torch.device(args.device)
    tokens = torch.randint(args.vocab_size, (1, args.length + 1), device=device)
    if args.row == "plain":
        config = ModelConfig(
            d_model=args.d_model,
            n_layers=args.n_layers,
            vocab_size=args.vocab_size,
            max_seq_len=args.length,
            dropout=0.0,
        )
        net: torch.nn.Module = PlainGAM(config).to(device)
    else:
        net = make_model(args, args.row, args.n_layers)
        prepare_blocks(net, "full", compiled=can_compile(device)[0])

    layouts = {n: layout_of(args, n) for n in (SHORT_STEP, 4 * SHORT_STEP, args.length)}

    def step(length: int) -> None:
        net.zero_grad(set_to_none=True)
        given = () if args.row == "plain" else (layouts[length],)
        net(tokens[:, :length], tokens[:, 1 : length + 1], *given).backward()
        synchronise(device)

    def per_token(length: int) -> float:
        return seconds(partial(step, length), 8 if length == SHORT_STEP else 1, args.clock) / length

    for length in (SHORT_STEP, 4 * SHORT_STEP):  # the long step runs what 4 * SHORT_STEP compiles
        step(length)
    us, few = beside(per_token, args.length, SHORT_STEP)
    peak = peak_memory_bytes(device)
    net.zero_grad(set_to_none=True)
    weights = sum(p.nbytes for p in net.parameters())
    tensors = weights + most_bytes(partial(step, args.length), device)
    return {"tensors": tensors, "peak": peak, "us": us * 1e6, "few": few * 1e6}


def generate(args: argparse.Namespace) -> None:
    """Print time per token and memory as the generated text grows."""
    print(f"generation, {args.n_layers} layers, d_model {args.d_model}, fp32, {args.device}")
    heads = [f"ms at {n:,}" for n in args.lengths]
    print("| layer | " + " | ".join(heads) + " | state | process grows |")
    print("|---|" + "--:|" * (len(heads) + 2))
    for kind in args.kinds:
        r = run(args, kind)
        cells = [kind, *(f"{ms:.2f}" for ms in r["ms"])]
        cells += [f"{r['state'] / 1e6:.2f} MB", f"{r['grows'] / 1e6:.1f} MB"]
        print("| " + " | ".join(cells) + " |", flush=True)


@torch.no_grad()
def generate_row(args: argparse.Namespace) -> dict:
    """Generate the likeliest token again and again; a time is the median of the last 500 tokens."""
    net = make_model(args, args.row, args.n_layers).eval()
    state, device = net.init_state(), torch.device(args.device)
    token = torch.zeros(1, 1, dtype=torch.int64, device=device)
    times, ms, baseline = [], [], 0
    for n in range(1, args.lengths[-1] + 1):
        start = time.perf_counter()
        logits, state = net.extend(token, state)
        token = logits.argmax(-1, keepdim=True)
        synchronise(device)
        times.append(time.perf_counter() - start)
        if n in args.lengths:
            ms.append(statistics.median(times[-500:]) * 1e3)
            baseline = baseline or resident_bytes(device)
    tensors = [v for b in state["blocks"] for v in b.values() if isinstance(v, Tensor)]
    grows = resident_bytes(device) - baseline
    return {"ms": ms, "state": sum(t.nbytes for t in tensors), "grows": grows}


def exchange(args: argparse.Namespace) -> None:
    """Print the bytes that each of two ranks sends for one layer, forward and backward."""
    size = 2
    print(f"one layer, d_model {args.d_model}, batch 1, fp32, {size} ranks; sent by each rank")
    print("| exchange | messages | " + " | ".join(f"T {n:,}" for n in args.lengths) + " |")
    print("|---|--:|" + "--:|" * len(args.lengths))
    for kind in args.kinds:
        r = launch(kind, size, "benchmarks.context")
        print(f"| {kind} | {r['messages']} | " + " | ".join(map(_kb, r["sent"])) + " |", flush=True)
    for name, tensors in (("Ulysses (by formula)", 8), ("ring attention (by formula)", 6)):
        sent = [comparison_bytes(n, args.d_model, size, tensors, name) for n in args.lengths]
        print(f"| {name} | | " + " | ".join(map(_kb, sent)) + " |")


def _kb(sent: float) -> str:
    return f"{sent / 1e3:,.1f} kB" if sent else ""


def comparison_bytes(length: int, width: int, size: int, tensors: int, name: str) -> float:
    """Return bytes that attention would send with another scheme, per rank and layer, both passes.

    In Ulysses (arXiv 2309.14509) a rank sends (size - 1) / size of its part of q, k, v, y and their
    gradients, 8 tensors, to other ranks. In ring attention (arXiv 2310.01889) it passes k and v on
    size - 1 times forward, and k, v and their gradients as often backward, 6 tensors.
    """
    part = 4 * length // size * width
    times = (size - 1) / size if name.startswith("Ulysses") else size - 1
    return tensors * times * part


def exchange_row(args: argparse.Namespace) -> dict:
    """Count the bytes where torch.distributed is called, and assert that operators count alike."""
    world = ranks.start(args.device)
    world = world.arranged(ParallelConfig(context=world.world_size))
    sent = []
    for length in args.lengths:
        net = make_model(args, args.row, 1)
        net.context = context = SequenceContext(world)
        messages: list[int] = []
        if args.row != "attention" or length <= FITS:
            part = Layout.stream(1, length).part(context.rank, context.size).to(world.device)
            x = torch.randn(1, part.length, args.d_model, device=world.device, requires_grad=True)
            with recorded(context.size) as messages:
                net.blocks[0](x, part, context).sum().backward()
            assert sum(messages) == context.bytes_sent, (messages, context.bytes_sent)
        sent.append(sum(messages))
    world.barrier()
    ranks.stop()
    return {"sent": sent, "messages": len(messages)}


def resident_bytes(device: torch.device) -> int:
    """Return the bytes that the process, or on a GPU its tensors, hold now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


if __name__ == "__main__":
    cli.run(main)
