#!/usr/bin/env python3
"""Reproduce the paper's tables: python tools/reproduce_paper.py --table 1 2 3 --out DIR [--scale F]

Table 1 trains GAM, Transformer and Mamba on WikiText-2 and TinyStories, table 3 GAM's ablations on
WikiText-2: as published, from the scaled initialisation, and, in table 1, without the other
handicaps. Table 2 times one block. The same command continues where it was stopped and repeats
nothing that is done. DIR/page/ shows what is done so far as report.html, report.md and CSVs. With
--scale below 1 the runs shrink by the rule that the page states.
"""

import argparse
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.training import train
from gam_scale.hardware.processor import find_device
from gam_scale.report.numbers import hours, scientific
from gam_scale.reproduce import blocks
from gam_scale.reproduce.blocks import LENGTHS
from gam_scale.reproduce.cells import DATASETS, LEAST_SCALE, DataSet, PaperCell, paper_grid
from gam_scale.reproduce.page import claim, write_page

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Plan, run what is missing and write the page; return the exit status."""
    args = parse()
    grid = planned(args)
    claim(args.out, args.scale, args.overrides)
    status = 0
    if args.page_only:
        keep_rows(grid)
    else:
        missing = grid.missing()
        if grid:
            print(f"{len(grid) - len(missing)} of {len(grid)} runs are done")
        announce(missing)
        status = 1 if train(missing) else 0
        if 2 in args.table:
            time_blocks(args)
    written = write_page(args.out, args.note)
    print(f"page: {written[0]}" if written else "nothing is measured yet, so there is no page")
    return status


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", type=cli.count(1, 3), nargs="+", required=True, metavar="1|2|3", help="tables"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the runs; page: DIR/page"
    )
    scale = cli.number(at_least=LEAST_SCALE, at_most=1)
    parser.add_argument(
        "--scale", type=scale, default=1.0, metavar="F", help="1: the paper's size (default: 1)"
    )
    parser.add_argument(
        "--seeds",
        type=cli.count(0),
        nargs="+",
        default=[0, 1, 2],
        help="train.seed of the runs (default: 0 1 2)",
    )
    parser.add_argument(
        "--wikitext2", metavar="DIR", help="prepared set of WikiText-2 (docs/models.md)"
    )
    parser.add_argument(
        "--tinystories", metavar="DIR", help="prepared set of TinyStories (docs/models.md)"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only runs whose name contains TEXT, such as wikitext2-gam",
    )
    parser.add_argument(
        "--lengths",
        type=cli.count(),
        nargs="+",
        default=LENGTHS,
        help="T of table 2, in tokens (default: the paper's)",
    )
    cli.add_device(parser, "of table 2; ")
    parser.add_argument(
        "--note", action="append", default=[], help="sentence to add to the page (repeatable)"
    )
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page")
    cli.add_overrides(parser)
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def planned(args: argparse.Namespace) -> Grid[PaperCell]:
    """Return the runs of tables 1 and 3, each once."""
    wanted = {1: DATASETS, 2: (), 3: ("wikitext2",)}
    names = dict.fromkeys(name for table in args.table for name in wanted[table])
    for name in names:
        if getattr(args, name) is None:
            raise UserError(
                f"--{name} is missing; expected a folder made by tools/prepare_data.py, as "
                "docs/models.md says"
            )
    datasets = [DataSet.read(name, getattr(args, name)) for name in names]
    tables, configs = [table for table in args.table if table != 2], ROOT / "configs" / "paper"
    grid: Grid[PaperCell] = Grid([])
    if tables:
        grid = paper_grid(
            tables, datasets, args.seeds, args.scale, configs, args.out, args.overrides
        )
    grid = Grid([job for job in grid.jobs if args.only in job[0].name])
    if args.only and not grid:
        raise UserError(
            f"--only {args.only} is in no run's name; expected part of one, such as gam"
        )
    return grid


def keep_rows(grid: Grid[PaperCell]) -> None:
    """Keep the rows of finished runs for the page; say which cannot be, and leave these out."""
    for cell in grid.cells:
        try:
            cell.row()
        except UserError as error:
            print(f"not on the page: {error}", file=sys.stderr)


def announce(missing: Grid[PaperCell]) -> None:
    """Print how much there is to train."""
    if missing:
        took = hours(missing.flops / 1e11 / 3600)
        flops = scientific(missing.flops)
        print(f"{len(missing)} runs, {flops} FLOPs: {took} hours at 100 GFLOP/s")


def time_blocks(args: argparse.Namespace) -> None:
    """Measure the blocks of table 2 that are missing, each in a process of its own."""
    todo = blocks.missing(args.out, args.lengths)
    for i, (kind, length) in enumerate(todo, 1):
        print(f"[{i}/{len(todo)}] {kind} block, {length:,} tokens", flush=True)
        made = blocks.measure_into(args.out, kind, length, args.scale, args.device)
        time = "does not fit" if made["ms"] is None else f"{made['ms']:,.1f} ms"
        print(f"  {time}", flush=True)


if __name__ == "__main__":
    cli.run(main)
