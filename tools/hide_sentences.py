#!/usr/bin/env python3
"""Texts to practise finding on: python tools/hide_sentences.py --data DIR --out FILE.jsonl

Real text of a prepared set with sentences hidden in it and said again later, as evaluate.py
--needle and --pairs hide and ask for them. tools/prepare_data.py takes the file (--tokenizer DIR),
and a run on it learns to find such sentences: docs/long_context.md.
"""

import argparse
import json
import tempfile
from pathlib import Path

from gam_scale import cli
from gam_scale.data.shards import TokenSplit
from gam_scale.errors import UserError
from gam_scale.evaluate.practice import Practice, practice_texts
from gam_scale.files import write_bytes

DEFAULT = Practice()


def main() -> None:
    """Parse, draw, write."""
    args = parse()
    if args.out.exists():
        raise UserError(f"{args.out} is there already; expected a new file")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    practice = Practice(args.shortest, args.longest, args.sentences)
    lines, tokens = [], 0
    with tempfile.TemporaryDirectory() as cache:  # of a set behind a URL
        split = TokenSplit(args.data, args.split, cache)
        for text, size in practice_texts(split, split.load_tokenizer(), practice, args.seed):
            lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            tokens += size
            if tokens >= args.tokens:
                break
    write_bytes(args.out, "".join(lines).encode())
    print(f"wrote {args.out}: {len(lines):,} texts, {tokens:,} tokens")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="prepared set, or its URL")
    add("--out", type=Path, required=True, metavar="FILE", help="of JSON lines, to be made")
    add("--split", default="train", help="of the set (train)")
    add("--tokens", type=cli.number(above=0), default=4e6, help="to write, about (4e6)")
    add("--shortest", type=cli.count(), default=DEFAULT.shortest,
        help=f"tokens of a text at least ({DEFAULT.shortest})")  # fmt: skip
    add("--longest", type=cli.count(), default=DEFAULT.longest,
        help=f"tokens of a text at most ({DEFAULT.longest})")  # fmt: skip
    add("--sentences", type=cli.count(), default=DEFAULT.sentences,
        help=f"different ones hidden in a text at most ({DEFAULT.sentences})")  # fmt: skip
    add("--seed", type=cli.count(0), default=0, help="of what is drawn (0)")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
