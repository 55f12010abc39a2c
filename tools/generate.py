#!/usr/bin/env python3
"""Continue a prompt with a trained model: python tools/generate.py RUN_OR_CHECKPOINT "Once upon"

It needs the checkpoint alone, which holds the config and the tokenizer. --chat answers each line
that is typed: by the chat template if the model was fine-tuned on conversations, else by continuing
the text. Ctrl-C ends an answer, Ctrl-D (the end of the input) ends the chat.
"""

import argparse
import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gam_scale import cli
from gam_scale.chat import Chat
from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.store import best_checkpoint
from gam_scale.data.chat_template import ChatTemplate
from gam_scale.errors import UserError
from gam_scale.generate import MAX_TOKENS, Continuation, Sampling, generate
from gam_scale.hardware.processor import find_device
from gam_scale.strict import is_text


def main() -> None:
    """Parse the command line, load the model and stream text to the terminal."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="run directory (its newest checkpoint), step-* folder, or URL of either",
    )
    parser.add_argument("prompt", nargs="?", default="", help="text to continue; '-' reads stdin")
    add = parser.add_argument
    add("--max-tokens", type=cli.count(), metavar="N",
        help=f"most new tokens (default: {MAX_TOKENS}, or what the context still "
        "holds)")  # fmt: skip
    add("--temperature", type=cli.number(at_least=0), default=0.8, help="0: greedy (default: 0.8)")
    add("--top-k", type=cli.count(0), default=0, help="only the k likeliest; 0: all (default: 0)")
    add(
        "--top-p",
        type=cli.number(above=0, at_most=1),
        default=0.95,
        help="only the likeliest tokens with this total probability (nucleus); 1: all (default: "
        "0.95)",
    )
    add("--seed", type=cli.count(0), default=0, help="seed of sampling (default: 0)")
    add("--chat", action="store_true", help="answer each line that is typed")
    cli.add_best(parser)
    cli.add_device(parser)
    args = parser.parse_args()
    path = best_checkpoint(args.checkpoint) if args.best else args.checkpoint
    sampling, prompt = Sampling(args.temperature, args.top_k, args.top_p), _prompt(args)
    trained = load_trained(path, find_device(args.device))
    if args.chat:
        text = Continuation(trained.model, trained.tokenizer, sampling, args.seed)
        source = trained.config.data.chat_template
        template = ChatTemplate(source, trained.tokenizer) if source else None
        _chat(Chat(text, trained.tokenizer, template), prompt, args.max_tokens)
        return
    print(prompt, end="", flush=True)
    pieces = generate(
        trained.model, trained.tokenizer, prompt, args.max_tokens, sampling, args.seed
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _chat(chat: Chat, first: str, max_tokens: int | None) -> None:
    """Answer ``first``, if it is not empty, and then each line until the input ends."""
    with suppress(ImportError):
        import readline  # noqa: F401 (lines can then be edited)
    with suppress(io.UnsupportedOperation):  # something has read from it already
        sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    said: str | None = first or _line()
    while said is not None:
        if is_text(said):
            _answer(chat, said, max_tokens)
        else:
            print("error: that has bytes that are not UTF-8; expected text", file=sys.stderr)
        said = _line()


def _answer(chat: Chat, said: str, max_tokens: int | None) -> None:
    """Print an answer as it comes; if the chat cannot go on, say why and start it anew."""
    with _interrupts() as asked:
        try:
            for piece in chat.answer(said, max_tokens):
                print(piece, end="", flush=True)
                if asked:
                    break
        except UserError as error:
            print(f"error: {error}; all that was said is forgotten", file=sys.stderr)
            chat.restart()
    print(flush=True)


def _line() -> str | None:
    """Return the next line that is typed; None where the input ends."""
    while True:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)", file=sys.stderr)
        except EOFError:
            if sys.stdin.isatty():
                print()
            return None


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Yield a list that gets an entry for every Ctrl-C, which then does not end the process."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _prompt(args: argparse.Namespace) -> str:
    """Return the prompt, read from standard input if it is ``-``."""
    if args.chat and args.prompt == "-":
        raise UserError("--chat reads its lines from standard input; expected a prompt, or none")
    given = args.prompt
    text = given if given != "-" else sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
    if not is_text(text):
        raise UserError("the prompt has bytes that are not UTF-8; expected text")
    return text


if __name__ == "__main__":
    cli.run(main)
