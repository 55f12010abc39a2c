#!/usr/bin/env python3
"""Compare models: python tools/compare.py plan|run|status|page --spec FILE --out DIR

plan prints every model's size and what there is to train. run trains and measures what is missing,
learning rates first, and continues where it was killed. status says what is done. page writes
report.html, report.md, pictures and results.jsonl to DIR/page or --to; with --results, it makes the
page again from such a results.jsonl alone. If --to has a results.jsonl, its cells count as done,
and run adds every cell that it finishes: keep this file where a machine may be lost.
"""

import argparse
from pathlib import Path

from gam_scale import cli
from gam_scale.compare.comparison import Comparison
from gam_scale.compare.page import write_page
from gam_scale.compare.spec import Spec, TextSpec, read_spec
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.kept import RESULTS, read_rows, write_rows
from gam_scale.experiment.training import train
from gam_scale.report.numbers import hours, scientific
from gam_scale.report.table import Table


def main() -> int:
    """Parse the command line and do the one action; return the exit status."""
    args = parse()
    spec = read_spec(args.spec, args.data)
    if args.action == "page" and args.results:
        return page(args, spec, read_rows(args.results, ["model"]))
    if args.out is None:
        raise UserError("--out is missing; expected the folder of the results")
    comparison = Comparison(spec, args.out, args.start)
    if args.to and (args.to / RESULTS).exists():
        comparison.restore(read_rows(args.to / RESULTS, ["model"]))
    if args.action == "plan":
        plan(comparison, args)
    elif args.action == "run":
        return run(comparison, args)
    elif args.action == "status":
        status(comparison)
    else:
        return page(args, spec, comparison.rows_to_keep())
    return 0


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "action",
        choices=["plan", "run", "status", "page"],
        help="plan: print sizes and cost, train nothing; run: train and measure what is missing; "
        "status: say what is done; page: write the page of the results",
    )
    add(
        "--spec", type=Path, required=True, metavar="FILE", help="comparison (see configs/compare/)"
    )
    add("--out", type=Path, metavar="DIR", help="folder for results, configs and runs")
    add("--data", default="", metavar="DIR", help="prepared set to use instead of the file's")
    add(
        "--start",
        type=Path,
        metavar="DIR",
        help="folder (its --out) of the comparison whose models the file's start names",
    )
    add(
        "--side-by-side",
        type=cli.count(),
        default=1,
        metavar="N",
        help="processes at a time (default: 1)",
    )
    add("--only", default="", metavar="TEXT", help="only cells whose name contains TEXT")
    add("--gflops", type=cli.number(above=0), default=50.0,
        help="GFLOP/s of one process, for the predicted time (default: 50)")  # fmt: skip
    add("--to", type=Path, metavar="DIR",
        help="folder for the page (default: OUT/page); run keeps results.jsonl there")  # fmt: skip
    add("--results", type=Path, metavar="FILE", help="results.jsonl to make the page from")
    return parser.parse_args()


def plan(comparison: Comparison, args: argparse.Namespace) -> None:
    """Print the models' sizes and what can be trained now; later stages follow from its results."""
    spec = comparison.spec
    if isinstance(spec, TextSpec):
        rows = [
            [name, f"{m.parameters:,}", f"{m.memory:,}", str(m.state), str(m.width or "")]
            for name, (m, _) in comparison.models.items()
        ]
        header = ["model", "parameters", "memory", "state, numbers", "ffn width"]
        counts = [m.parameters for m, _ in comparison.models.values()]
        note = (
            "Parameters beside embeddings and head, within "
            f"{max(counts) / min(counts) - 1:.2%} of each other."
        )
        print(Table("", header, rows, note))
    check_only(comparison, args.only)
    missing = [job[0] for job in comparison.missing().only(args.only).jobs]
    for cell in missing:
        print(f"{cell.name:<48} {scientific(cell.flops)} FLOPs")
    print(f"{len(missing)} cells are known and missing, {_cost(missing, args)}")


def run(comparison: Comparison, args: argparse.Namespace) -> int:
    """Train and measure until nothing is missing, and begin at once what follows from a result."""

    def missing() -> Grid[Cell]:
        if args.to:
            write_rows(comparison.rows_to_keep(), args.to)
        return comparison.missing().only(args.only)

    check_only(comparison, args.only)
    first = missing()
    print(f"{len(first)} cells, {_cost(first.cells, args)}", flush=True)
    if train(first, args.side_by_side, missing):
        return 1
    print(f"all known cells with {args.only} are done" if args.only else "everything is done")
    return 0


def check_only(comparison: Comparison, only: str) -> None:
    """Refuse an ``--only`` that no cell has which is known now."""
    names = [cell.name for cell in comparison.cells()]
    if not any(only in name for name in names):
        raise UserError(
            f"--only {only} is in no name of the cells that are known so far; expected part of "
            f"one, such as {names[0]}"
        )


def status(comparison: Comparison) -> None:
    """Print which of the known cells are done, begun or missing."""
    states = {cell.name: cell.state() for cell in comparison.cells()}
    print(Table("", ["cell", "state"], [list(each) for each in states.items()]))
    done = list(states.values()).count("finished")
    print(f"{done} of {len(states)} known cells are done; later stages follow from them")


def page(args: argparse.Namespace, spec: Spec, rows: list[Row]) -> int:
    """Write the page; return the exit status."""
    to = args.to or (args.out / "page" if args.out else None)
    if to is None:
        raise UserError("--to is missing; expected the folder of the page")
    if not rows:
        print("nothing is done yet, so there is no page")
        return 1
    written = write_page(spec, rows, to)
    print(f"page: {written[0]}")
    return 0


def _cost(cells: list[Cell], args: argparse.Namespace) -> str:
    flops = sum(cell.flops for cell in cells)
    took = hours(flops / (args.gflops * 1e9) / 3600)
    return f"{scientific(flops)} FLOPs: {took} hours of one process at {args.gflops:g} GFLOP/s"


if __name__ == "__main__":
    cli.run(main)
