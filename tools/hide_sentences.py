#!/usr/bin/env python3
"""Write texts to practise retrieval on: python tools/hide_sentences.py --data DIR --out FILE.jsonl

They are real text of a prepared set with hidden sentences that are repeated later in it, as
evaluate.py --needle and --pairs hide and ask for them. tools/prepare_data.py takes the file
(--tokenizer DIR), and a run on it learns to find such sentences: docs/long_context.md.
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
    """Parse the command line, draw texts and write them."""
    args = parse()
    if args.out.exists():
        raise UserError(f"{args.out} is there already; expected a new file")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    practice = Practice(args.shortest, args.longest, args.sentences)
    lines, tokens = [], 0
    with tempfile.TemporaryDirectory() as cache:  # for a set at a URL
        split = TokenSplit(args.data, args.split, cache)
        for text, size in practice_texts(split, split.load_tokenizer(), practice, args.seed):
            lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            tokens += size
            if tokens >= args.tokens:
                break
    write_bytes(args.out, "".join(lines).encode())
    print(f"wrote {args.out}: {len(lines):,} texts, {tokens:,} tokens")


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", required=True, metavar="DIR", help="prepared set to read, or its URL")
    add("--out", type=Path, required=True, metavar="FILE", help="new file of JSON lines to write")
    add("--split", default="train", help="split of the set to read (default: train)")
    add(
        "--tokens",
        type=cli.number(above=0),
        default=4e6,
        help="about so many to write (default: 4e6)",
    )
    add("--shortest", type=cli.count(), default=DEFAULT.shortest,
        help=f"fewest tokens of a text (default: {DEFAULT.shortest})")  # fmt: skip
    add("--longest", type=cli.count(), default=DEFAULT.longest,
        help=f"most tokens of a text (default: {DEFAULT.longest})")  # fmt: skip
    add("--sentences", type=cli.count(), default=DEFAULT.sentences,
        help="most different sentences hidden in a text (default: "
        f"{DEFAULT.sentences})")  # fmt: skip
    add("--seed", type=cli.count(0), default=0, help="seed of what is drawn (default: 0)")
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
