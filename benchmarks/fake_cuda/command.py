"""The command line; see ``__main__``."""

import argparse
import json
import sys
import time
from typing import Any

from benchmarks.fake_cuda import page
from benchmarks.fake_cuda.block import trace
from benchmarks.fake_cuda.dtypes import nodes
from benchmarks.fake_cuda.rows import (
    CONFIGS,
    KINDS,
    LAYERS,
    RECOMPUTE,
    Row,
    layer_of,
    measured,
    rows,
    without_kernels,
)
from gam_scale import cli


def main() -> None:
    """Trace the rows that are asked for; print them, or write them into the file and docs."""
    args = parse()
    without_kernels()
    if args.dtypes:
        print(json.dumps([dtypes(kind, args.configs[0]) for kind in args.kinds]))
        return
    chosen = rows(args.kinds, args.configs, args.recompute)
    found = [_noted(row) for row in chosen]
    if args.update:
        page.write(page.merged_with_file(found))
    elif args.only_print:
        print(json.dumps(found))
    else:
        page.write(found)


def parse() -> argparse.Namespace:
    """Read the command line and check its names."""
    parser = cli.Parser(description="What a block costs on a GPU: graphs, kernels, bytes.")
    for flag, known in (
        ("kinds", (*KINDS, *LAYERS)),
        ("configs", CONFIGS),
        ("recompute", RECOMPUTE),
    ):
        names = cli.several(cli.one_of(*known))
        parser.add_argument(
            f"--{flag}", type=names, help=f"some of {', '.join(known)} (default: all)"
        )
    parser.add_argument(
        "--update",
        action="store_true",
        help="write the rows asked for into the table, beside its others",
    )
    parser.add_argument(
        "--dtypes", action="store_true", help="print the operators' precisions and stop"
    )
    args = parser.parse_args()
    args.only_print = any((args.kinds, args.configs, args.recompute))
    args.kinds = args.kinds or (*KINDS, *LAYERS)
    args.configs = args.configs or CONFIGS
    args.recompute = args.recompute or RECOMPUTE
    return args


def _noted(row: Row) -> dict[str, Any]:
    start = time.monotonic()
    found = measured(row)
    seconds = time.monotonic() - start
    print(f"{row}: {found['graphs']} graphs, {found['bytes']} B, {seconds:.0f} s", file=sys.stderr)
    return found


def dtypes(kind: str, config: str) -> dict[str, Any]:
    """Return all operators of a block's graphs: pass, module, name, dtypes in and out, number."""
    found = trace(Row(config, kind, "selective").settings(), layer_of(kind))
    counted = nodes([graph.module for graph in found.graphs])
    return {"kind": kind, "operators": [[*node, n] for node, n in sorted(counted.items())]}
