#!/usr/bin/env python3
"""Continue a prompt with a trained model: python tools/generate.py RUN_OR_CHECKPOINT "Once upon"

Needs nothing but the checkpoint: its config and its tokenizer are inside.
"""

import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.store import best_checkpoint
from gam_scale.errors import UserError
from gam_scale.generate import MAX_TOKENS, Sampling, generate
from gam_scale.hardware.processor import find_device
from gam_scale.strict import is_text


def main() -> None:
    """Parse, load, stream text to the terminal."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="run directory (its newest) or step-* folder")
    parser.add_argument("prompt", nargs="?", default="", help="text to continue; '-' reads stdin")
    add = parser.add_argument
    add("--max-tokens", type=cli.count(), metavar="N",
        help=f"most new tokens ({MAX_TOKENS}, or what the context still holds)")  # fmt: skip
    add("--temperature", type=cli.number(at_least=0), default=0.8, help="0: greedy (0.8)")
    add("--top-k", type=cli.count(0), default=0, help="only the k likeliest; 0: all (0)")
    add("--top-p", type=cli.number(above=0, at_most=1), default=0.95, help="nucleus, 1: all (0.95)")
    add("--seed", type=cli.count(0), default=0, help="of what is sampled (0)")
    cli.add_best(parser)
    cli.add_device(parser)
    args = parser.parse_args()
    path = best_checkpoint(args.checkpoint) if args.best else args.checkpoint
    sampling, prompt = Sampling(args.temperature, args.top_k, args.top_p), _prompt(args.prompt)
    trained = load_trained(path, find_device(args.device))
    print(prompt, end="", flush=True)
    pieces = generate(
        trained.model, trained.tokenizer, prompt, args.max_tokens, sampling, args.seed
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _prompt(given: str) -> str:
    """The prompt, from standard input for ``-``."""
    text = given if given != "-" else sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not is_text(text):
        raise UserError("the prompt has bytes that are not UTF-8; expected text")
    return text


if __name__ == "__main__":
    cli.run(main)
