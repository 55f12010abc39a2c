#!/usr/bin/env python3
"""Continue a prompt with a trained model: python tools/generate.py RUN_OR_CHECKPOINT "Once upon"

Needs nothing but the checkpoint: its config and its tokenizer are inside.
"""

import argparse
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.checkpoint.load import load_trained
from gam_scale.errors import UserError
from gam_scale.generate import Sampling, generate


def main() -> None:
    """Parse, load, stream text to the terminal."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="run directory (its newest) or step-* folder")
    parser.add_argument("prompt", nargs="?", default="", help="text to continue; '-' reads stdin")
    parser.add_argument("--max-tokens", type=int, default=200, help="most new tokens (200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: greedy (0.8)")
    parser.add_argument("--top-k", type=int, default=0, help="only the k likeliest; 0: all (0)")
    parser.add_argument("--top-p", type=float, default=0.95, help="nucleus, 1: all (0.95)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (0)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args()
    sampling = _sampling(args)
    trained = load_trained(args.checkpoint, args.device)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    print(prompt, end="", flush=True)
    pieces = generate(
        trained.model, trained.tokenizer, prompt, args.max_tokens, sampling, args.seed
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _sampling(args: argparse.Namespace) -> Sampling:
    if args.temperature < 0:
        raise UserError(f"--temperature is {args.temperature:g}; expected 0 or more")
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p is {args.top_p:g}; expected more than 0 and at most 1")
    if args.top_k < 0:
        raise UserError(f"--top-k is {args.top_k}; expected 0 or more")
    if args.max_tokens < 1:
        raise UserError(f"--max-tokens is {args.max_tokens}; expected at least 1")
    return Sampling(args.temperature, args.top_k, args.top_p)


if __name__ == "__main__":
    cli.run(main)
