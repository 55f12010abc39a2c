#!/usr/bin/env python3
"""Convert checkpoints: python tools/convert_checkpoint.py export RUN --to hf --out DIR

export writes one of our checkpoints as a Hugging Face folder or as plain safetensors. import makes
one of our checkpoints from an exported folder, from weights of the paper's official code, or from a
DeepSpeed universal checkpoint; it writes a run directory that every other tool takes.
"""

import argparse
from pathlib import Path

from gam_scale import cli
from gam_scale.checkpoint.store import best_checkpoint
from gam_scale.config import load_config
from gam_scale.data.chat_template import read_template
from gam_scale.errors import UserError
from gam_scale.export.folder import check_is_new
from gam_scale.export.hf import export_hf, export_safetensors
from gam_scale.export.hf_import import read_hf
from gam_scale.export.imported import Imported, write_checkpoint
from gam_scale.export.official import read_official
from gam_scale.export.universal import read_universal

EXPORTS = {"hf": export_hf, "safetensors": export_safetensors}
FORMATS = ("hf", "official", "universal")


def main() -> None:
    """Parse the command line, convert and print where the result is."""
    args = _parser().parse_args()
    check_is_new(args.out)  # before anything is read
    if args.command == "export":
        path = best_checkpoint(args.checkpoint) if args.best else args.checkpoint
        _export(path, args)
        print(f"wrote {args.out}")
    else:
        print(f"wrote {write_checkpoint(_read(args), args.out)}")
        data = """--set 'data.sets=[{"path": "DIR"}]'"""
        print(f"train on: python tools/pretrain.py --config {args.out / 'config.json'} {data}")


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser("export", help="write one of our checkpoints in another format")
    export.add_argument(
        "checkpoint",
        type=Path,
        help="run directory (its newest checkpoint), step-* folder, or URL of either",
    )
    cli.add_best(export)
    export.add_argument("--to", choices=EXPORTS, required=True, help="format to write")
    export.add_argument("--out", type=Path, required=True, help="new or empty folder to write")
    export.add_argument(
        "--chat-template", type=Path, metavar="FILE",
        help="hf: Jinja template for conversations, as in transformers (default: the run's own, if "
        "it has one)",
    )  # fmt: skip
    read = commands.add_parser("import", help="make a checkpoint of ours from another format")
    read.add_argument("source", type=Path, help="folder to read, or file of official weights")
    read.add_argument(
        "--from", dest="format", required=True, choices=FORMATS, help="format to read"
    )
    read.add_argument(
        "--out",
        type=Path,
        required=True,
        help="new or empty run directory to write",
    )
    read.add_argument(
        "--tokenizer",
        type=Path,
        help="tokenizer.model of the weights (default with hf: the folder's own)",
    )
    read.add_argument("--config", type=Path, help="universal: JSON config of the DeepSpeed run")
    return parser


def _export(checkpoint: Path, args: argparse.Namespace) -> None:
    if args.chat_template is None:
        EXPORTS[args.to](checkpoint, args.out)
        return
    if args.to != "hf":
        raise UserError("--chat-template is for --to hf; plain safetensors have no place for one")
    export_hf(checkpoint, args.out, read_template(args.chat_template))


def _read(args: argparse.Namespace) -> Imported:
    if args.format == "hf":
        return read_hf(args.source, args.tokenizer)
    if args.tokenizer is None:
        raise UserError(
            f"--tokenizer is missing; {args.format} weights bring none, expected the "
            "tokenizer.model they were trained with"
        )
    if args.format == "official":
        return read_official(args.source, args.tokenizer)
    if args.config is None:
        raise UserError("--config is missing; expected the JSON config of the DeepSpeed run")
    return read_universal(args.source, load_config(args.config), args.tokenizer)


if __name__ == "__main__":
    cli.run(main)
