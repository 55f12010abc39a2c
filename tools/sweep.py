#!/usr/bin/env python3
"""Train a scaling law's runs: python tools/sweep.py plan|run|status|collect --sweep FILE --out DIR

plan prints every run, its predicted cost and what the sweep cannot show. run trains what is
missing, one after another or, with --submit, as a Slurm array, and continues where it was killed.
status says what is done. collect writes DIR/runs.csv, curves.csv and, if learning rates or lengths
of texts were varied, lr.csv and contexts.csv, which tools/scaling_report.py reads.

With --beyond, plan, run and status are of the runs under "beyond" in the sweep file and of no
others; plan prints how to forecast them, and collect writes those that are done to forecast.csv.

With --to, these files go there. run and collect then also keep there, in results.jsonl, what a
report needs of every finished run, which counts as done from then on: save this folder where a
machine may be lost. Only one command at a time may keep results in a folder; collect keeps those of
--submit.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.training import train
from gam_scale.report.numbers import hours, large, scientific
from gam_scale.report.table import Table
from gam_scale.scaling.collect import best_multipliers, collect
from gam_scale.scaling.sweep import sweep_grid
from gam_scale.scaling.sweep_advice import repeated, suspicions, warnings
from gam_scale.scaling.sweep_cell import SweepCell
from gam_scale.scaling.sweep_kept import keep, with_kept
from gam_scale.scaling.sweep_spec import read_sweep

SHOWN = {"finished": "done", "training": "begun", "unfinished": "begun", "absent": "missing"}
"""What the status table calls each state of a cell."""


def main() -> int:
    """Parse the command line and do the one action; return the exit status."""
    args = parse()
    grid = sweep_grid(read_sweep(args.sweep), args.out)
    if args.to:
        grid = with_kept(grid, args.to)
    if args.action != "collect":
        grid = chosen(grid, args.beyond)
        if not grid.only(args.only):
            raise UserError(
                f"--only {args.only} is in no run's name; expected part of one, such as "
                f"{grid.cells[0].name}"
            )
    if args.action == "plan":
        plan(grid.only(args.only), args.gflops)
        for sentence in warnings(grid.cells):
            print(f"warning: {sentence}")
        if args.beyond:
            print(
                "forecast these runs first: tools/scaling_report.py --at", *map(asked, grid.cells)
            )
    elif args.action == "run":
        return run(grid, args)
    elif args.action == "status":
        status(grid)
    else:
        for path, rows in collect(grid, args.to or args.out).items():
            print(f"{rows} rows in {path}")
        if args.to:
            keep(grid, args.to)
    return 0


def parse() -> argparse.Namespace:
    """Return the parsed command line, its numbers checked."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "action",
        choices=["plan", "run", "status", "collect"],
        help="plan: print every run and its cost, train nothing; run: train what is missing; "
        "status: say what is done; collect: write the tables that tools/scaling_report.py reads",
    )
    parser.add_argument(
        "--sweep",
        required=True,
        metavar="FILE",
        help="JSON file of the sweep (see configs/sweeps/)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the runs"
    )
    parser.add_argument(
        "--to",
        type=Path,
        metavar="DIR",
        help="folder for what collect writes, instead of --out, and for results.jsonl, which keeps "
        "finished runs",
    )
    parser.add_argument(
        "--gflops",
        type=cli.number(above=0),
        default=100.0,
        help="GFLOP/s that training reaches on this machine, for the predicted time (default: 100)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="plan, run: jobs with a run whose name contains TEXT",
    )
    parser.add_argument(
        "--beyond",
        action="store_true",
        help='plan, run, status: the runs under "beyond" in the sweep file instead of the others',
    )
    parser.add_argument(
        "--side-by-side",
        type=cli.count(),
        default=1,
        metavar="N",
        help="run: jobs at a time (default: 1)",
    )
    parser.add_argument("--yes", action="store_true", help="run: do not ask, even on a terminal")
    slurm = parser.add_argument_group("run on Slurm, a job for each trunk and its branches")
    slurm.add_argument("--submit", action="store_true", help="submit the runs as an array of jobs")
    slurm.add_argument(
        "--partition", default="", metavar="P", help="partition (default: the cluster's)"
    )
    slurm.add_argument(
        "--nodes", type=cli.count(), default=1, help="machines of each job (default: 1)"
    )
    slurm.add_argument(
        "--gpus-per-node",
        type=cli.count(),
        default=1,
        help="GPUs, and ranks, on each machine (default: 1)",
    )
    slurm.add_argument(
        "--cpus-per-task", type=cli.count(), default=8, help="cores of each rank (default: 8)"
    )
    minutes: dict[str, Any] = {"type": cli.count(), "default": 1440}
    slurm.add_argument(
        "--minutes", **minutes, help="time limit of each job in minutes (default: 1440)"
    )
    slurm.add_argument("--dry-run", action="store_true", help="print a job's script, submit none")
    args = parser.parse_args()
    if args.beyond and args.action == "collect":
        raise UserError("--beyond is for plan, run and status; collect writes forecast.csv anyway")
    if args.dry_run and not args.submit:
        raise UserError("--dry-run prints what --submit would hand in; expected both, or plan")
    return args


def chosen(grid: Grid[SweepCell], beyond: bool) -> Grid[SweepCell]:
    """Return the jobs beyond the grid, or all others."""
    found = Grid([job for job in grid.jobs if job[0].beyond == beyond])
    if beyond and not found:
        raise UserError('--beyond needs runs under "beyond" in the sweep file; expected some there')
    return found


def asked(cell: SweepCell) -> str:
    """Return the run as ``--at`` of tools/scaling_report.py takes it."""
    return f"{cell.family}:{cell.params},{cell.tokens:.0f}"


def plan(grid: Grid[SweepCell], gflops: float) -> None:
    """Print every run, the cheapest first, and what all of them cost."""
    rows = []
    for cell in grid.cells:
        settings = cell.config.train
        sizes = [large(cell.params), large(cell.tokens), scientific(cell.flops)]
        shared = f"{cell.shared_steps / settings.steps:.0%}" if cell.branches else "-"
        batch, lr = str(settings.global_batch_size), f"{settings.lr:.2g}"
        rows.append([cell.name, *sizes, shared, f"{settings.steps:,}", batch, lr])
    header = ["run", "params", "tokens", "FLOPs", "shared", "steps", "batch", "lr"]
    print(Table("", header, rows))
    cost(grid, gflops)


def cost(grid: Grid[SweepCell], gflops: float) -> None:
    """Print what these runs cost, and what branching off one another saves."""
    own, alone = grid.own_flops, grid.flops
    took = hours(own / (gflops * 1e9) / 3600)
    print(f"{len(grid)} runs, {scientific(own)} FLOPs: {took} hours at {gflops:g} GFLOP/s")
    if own < alone:
        branches = sum(cell.branches for cell in grid.cells)
        print(
            f"{branches} of them branch off a longer run, which saves {scientific(alone - own)} "
            f"FLOPs, {1 - own / alone:.0%} of what runs of their own would take"
        )


def run(grid: Grid[SweepCell], args: argparse.Namespace) -> int:
    """Train what is missing, here or on Slurm; return the exit status."""
    grid = grid.only(args.only)

    def still_missing() -> Grid[SweepCell]:
        if args.to:
            keep(grid, args.to)
        return grid.missing()

    missing = still_missing()
    if again := repeated(missing.cells):
        print(f"warning: {again}")
    print(f"{len(grid) - len(missing)} of {len(grid)} runs are done")
    if not missing:
        return 0
    cost(missing, args.gflops)
    asks = sys.stdin.isatty() and not (args.yes or args.dry_run)
    if asks and input("Train them? [y/N] ").strip().lower() not in ("y", "yes"):
        return 1
    if args.submit:
        return submit(missing, args)
    try:
        return 1 if train(missing, args.side_by_side, still_missing) else 0
    finally:
        still_missing()  # also at Ctrl-C, when jobs have finished some of their runs


def submit(missing: Grid[SweepCell], args: argparse.Namespace) -> int:
    """Submit an array of jobs, without those that have a run under way; return the exit status."""
    try:
        from gam_scale.experiment.submission import as_request, not_under_way, submit_grid
        from gam_scale.launch.submit import Request, find_cluster, render
    except ImportError:
        raise UserError("submitit is not installed; expected `make install` first") from None
    cluster, reason = ("slurm", "") if args.dry_run else find_cluster()
    if cluster != "slurm":
        raise UserError(
            f"--submit needs Slurm, but there is {reason}; expected `run` without it, which trains "
            "here, one run after another"
        )
    free, total = not_under_way(missing), len(missing.jobs)
    if len(free.jobs) < total:
        print(f"{total - len(free.jobs)} of {total} jobs are queued or running already")
    if not free:
        return 0
    size = Request(
        configs=[],
        overrides=[],
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        minutes=args.minutes,
        cpus_per_task=args.cpus_per_task,
        cluster=cluster,
        partition=args.partition,
    )
    if args.dry_run:
        print(render(as_request(free, size)))
        return 0
    for number, job in zip(submit_grid(free, size), free.jobs, strict=True):
        print(f"job {number}: {', '.join(cell.name for cell in job)}")
    return 0


def status(grid: Grid[SweepCell]) -> None:
    """Print which runs are done, begun or missing, and what the learning rates show."""
    counts, done = {"done": 0, "begun": 0, "missing": 0}, grid.finished()
    rows = {cell.name: row for cell, row in done}
    lines = []
    for cell in grid.cells:
        row, state = rows.get(cell.name), SHOWN[cell.state()]
        counts[state] += 1
        loss = "" if not row else "no loss" if row["loss"] is None else f"{row['loss']:.4f}"
        lines.append([cell.name, state, loss])
    print(Table("", ["run", "state", "loss"], lines))
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    for sentence in (*best_multipliers(done), *suspicions(done)):
        print(sentence)


if __name__ == "__main__":
    cli.run(main)
