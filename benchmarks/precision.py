#!/usr/bin/env python3
"""Errors of gradients in bf16 against fp32, uncompiled and compiled.

    python -m benchmarks.precision [--device cuda --backend inductor] [--lengths 1024,16384]

An error is the norm of the difference of two gradients, divided by the norm of the fp32 gradient:
of all log rates of the model's gates together, and of all its parameters. Each row is the mean over
``--seeds`` models, each on random tokens of its own. ``compiled as torch does`` traces the backward
pass as torch does by default, with the forward pass's autocast.
"""

import argparse
import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

from gam_scale import cli
from gam_scale.config import MemoryConfig, ModelConfig
from gam_scale.hardware.processor import find_device
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS
from gam_scale.parallel import compilation
from gam_scale.parallel.blocks import prepare_blocks

Gradients = dict[str, Tensor]
ROWS = {
    "uncompiled": None,
    "compiled as torch does": "same_as_forward",
    "compiled": compilation.BACKWARD_AUTOCAST,
}
"""By row, the autocast while the backward pass is traced; None: not compiled."""


def main() -> None:
    """Print a row for each length and way to run."""
    args = parse()
    print(f"layers {', '.join(args.layers)} of width {args.d_model}, {args.device}, ", end="")
    print(f"compiled by {args.backend}, {args.seeds} seeds, torch {torch.__version__}\n")
    print("| T | bf16 | log rates | all parameters |\n|--:|---|--:|--:|")
    for length in args.lengths:
        errors: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
        for seed in range(args.seeds):
            exact = gradients(args, length, seed, "fp32", None)
            rates = [name for name in exact if name.endswith("log_rate")]
            for name, autocast in ROWS.items():
                found = gradients(args, length, seed, "bf16", autocast)
                errors[name].append((off(found, exact, rates), off(found, exact, exact)))
        for name, pairs in errors.items():
            cells = (f"{statistics.mean(column):.1e}" for column in zip(*pairs, strict=True))
            print(f"| {length:,} | {name} | {' | '.join(cells)} |", flush=True)


def gradients(
    args: argparse.Namespace, length: int, seed: int, precision: str, autocast: str | None
) -> Gradients:
    """Return the gradients of one sequence's mean loss, with selective recomputation as in the
    shipped configs."""
    torch._dynamo.reset()
    memory = MemoryConfig(n_heads=args.n_heads)
    model = build_model(
        ModelConfig(
            layers=args.layers,
            n_layers=len(args.layers),
            d_model=args.d_model,
            vocab_size=args.vocab_size,
            max_seq_len=length,
            position="none",
            dropout=0.0,
            memory=memory,
        ),
        seed,
        args.device,
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(args.vocab_size, (1, length + 1), generator=generator).to(args.device)
    compilation.BACKWARD_AUTOCAST = autocast or compilation.BACKWARD_AUTOCAST
    prepare_blocks(model, "selective", compiled=autocast is not None, backend=args.backend)
    with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
        loss = model(tokens[:, :-1], tokens[:, 1:])
    (loss / length).backward()
    return {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def off(found: Gradients, exact: Gradients, names: Iterable[str]) -> float:
    """Return the norm of the errors of some gradients together, over the norm of the exact ones."""
    pairs = [(found[name], exact[name]) for name in names]
    distance = sum(float((a - b).square().sum()) for a, b in pairs)
    return (distance / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    cli.add_device(parser)
    backend = "aot_eager_decomp_partition"  # the graphs that inductor would be given
    parser.add_argument(
        "--backend", default=backend, help=f"backend of torch.compile (default: {backend})"
    )
    lengths = cli.several(cli.count())
    parser.add_argument(
        "--lengths",
        type=lengths,
        default=[1024, 16384],
        help="tokens of the sequences (default: 1024,16384)",
    )
    layers = cli.several(cli.one_of(*MIXERS))
    parser.add_argument(
        "--layers",
        type=layers,
        default=["delta"] * 4,
        help="kind of each layer (default: four of delta)",
    )
    parser.add_argument("--d-model", type=cli.count(), default=256)
    parser.add_argument("--n-heads", type=cli.count(), default=4)
    parser.add_argument("--vocab-size", type=cli.count(), default=2048)
    parser.add_argument("--seeds", type=cli.count(), default=3)
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


if __name__ == "__main__":
    cli.run(main)
