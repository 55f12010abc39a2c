#!/usr/bin/env python3
"""The paper's tables again: python tools/reproduce_paper.py --table 1 2 3 --out DIR [--scale F]

Table 1 trains GAM, Transformer and Mamba on WikiText-2 and TinyStories, table 3 GAM's ablations on
WikiText-2: as published, from the scaled initialisation, and, in table 1, without the other
handicaps. Table 2 times one block. The same command goes on where it was stopped and repeats
nothing that is done; DIR/page/ holds what is done so far as report.html, report.md and CSVs.
--scale below 1 shrinks the runs by the rule that the page states.
"""

import argparse
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.experiment.worker import train_in_worker, wait_until_free
from gam_scale.hardware import find_device
from gam_scale.reproduce import blocks
from gam_scale.reproduce.blocks import LENGTHS
from gam_scale.reproduce.cells import (
    DATASETS,
    LEAST_SCALE,
    Cell,
    DataSet,
    cells,
    result,
    write_config,
)
from gam_scale.reproduce.page import claim, write_page
from gam_scale.scaling.words import hours, scientific

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Plan, run what is missing, write the page."""
    args = parse()
    found = planned(args)
    claim(args.out, args.scale, args.overrides)
    missing = [cell for cell in found if result(cell, args.out) is None]
    if found:
        print(f"{len(found) - len(missing)} of {len(found)} runs are done")
    status = 0
    if not args.page_only:
        status = train(missing, args.out)
        if 2 in args.table:
            time_blocks(args)
    written = write_page(args.out, args.note)
    print(f"page: {written[0]}" if written else "nothing is measured yet, so there is no page")
    return status


def parse() -> argparse.Namespace:
    """The command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--table", type=cli.count(1, 3), nargs="+", required=True, metavar="1|2|3", help="which"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="of runs; page: DIR/page"
    )
    scale = cli.number(at_least=LEAST_SCALE, at_most=1)
    parser.add_argument("--scale", type=scale, default=1.0, metavar="F", help="1: the paper's size")
    parser.add_argument(
        "--seeds",
        type=cli.count(0),
        nargs="+",
        default=[0, 1, 2],
        help="train.seed of the runs (0 1 2)",
    )
    parser.add_argument("--wikitext2", metavar="DIR", help="prepared set (README, The models)")
    parser.add_argument("--tinystories", metavar="DIR", help="prepared set")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="runs whose name contains this, wikitext2-gam say",
    )
    parser.add_argument(
        "--lengths", type=cli.count(), nargs="+", default=LENGTHS, help="T of table 2"
    )
    cli.add_device(parser, "of table 2; ")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the page")
    parser.add_argument("--page-only", action="store_true", help="run nothing, write the page")
    cli.add_overrides(parser)
    args = parser.parse_args()
    args.device = find_device(args.device).type
    return args


def planned(args: argparse.Namespace) -> list[Cell]:
    """The runs of tables 1 and 3, each once."""
    wanted = {1: DATASETS, 2: (), 3: ("wikitext2",)}
    names = dict.fromkeys(name for table in args.table for name in wanted[table])
    for name in names:
        if getattr(args, name) is None:
            raise UserError(
                f"--{name} is missing; expected a folder made by tools/prepare_data.py, as README "
                "says under The models"
            )
    datasets = [DataSet.read(name, getattr(args, name)) for name in names]
    configs, runs = ROOT / "configs" / "paper", args.out / "runs"
    found = {}
    for table in args.table:
        if table != 2:
            made = cells(table, datasets, args.seeds, args.scale, configs, runs, args.overrides)
            found |= {cell.name: cell for cell in made}
    found = {name: cell for name, cell in found.items() if args.only in name}
    if args.only and not found:
        raise UserError(
            f"--only {args.only} is in no run's name; expected part of one, such as gam"
        )
    order = {seed: i for i, seed in enumerate(args.seeds)}
    return sorted(found.values(), key=lambda cell: (order[cell.seed], cell.flops))


def train(missing: list[Cell], out: Path) -> int:
    """Train what is missing; a run that fails is named, and the others go on."""
    if missing:
        flops = sum(cell.flops for cell in missing)
        took = hours(flops / 1e11 / 3600)
        print(f"{len(missing)} runs, {scientific(flops)} FLOPs: {took} hours at 100 GFLOP/s")
    failed = []
    for i, cell in enumerate(missing, 1):
        config = write_config(cell, out / "configs")
        print(f"[{i}/{len(missing)}] {cell.name}", flush=True)
        wait_until_free(Path(cell.config.log.run_dir))
        log = config.with_suffix(".log")
        ended = train_in_worker([config], log)
        if result(cell, out) is None:
            failed.append(cell.name)
            print(f"  status {ended.status}, {ended.reason}\n  unfinished: {log}", flush=True)
    if failed:
        print(f"{len(failed)} runs are unfinished; the same command goes on with them")
    return 1 if failed else 0


def time_blocks(args: argparse.Namespace) -> None:
    """Measure the blocks of table 2 that are missing, each in a process of its own."""
    todo = blocks.missing(args.out, args.lengths)
    for i, (kind, length) in enumerate(todo, 1):
        print(f"[{i}/{len(todo)}] {kind} block, {length:,} tokens", flush=True)
        made = blocks.measure_into(args.out, kind, length, args.scale, args.device)
        told = "does not fit" if made["ms"] is None else f"{made['ms']:,.1f} ms"
        print(f"  {told}", flush=True)


if __name__ == "__main__":
    cli.run(main)
