#!/usr/bin/env python3
"""Run on a cluster: python tools/launch.py --config FILE --nodes 4 --gpus-per-node 8

It submits jobs through submitit, to Slurm or, if there is none, to this machine. --status,
--follow RUN and --cancel RUN look after runs that were submitted earlier, by any means.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.launch.follow import cancel, follow
from gam_scale.launch.status import COLUMNS, find_runs, slurm_states, status_table


def main() -> int:
    """Parse the command line, then submit, list, follow or cancel; return the exit status."""
    args = parse()
    if args.status is not None:
        show(args.status or ["runs"])
        return 0
    if args.cancel:
        print(cancel(Path(args.cancel)))
        return 0
    if args.follow and not (args.config or args.array):
        return 0 if follow(Path(args.follow)) == "finished" else 1
    return launch(args)


def parse() -> argparse.Namespace:
    """Return the parsed and checked command line."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", metavar="FILE", help="the run's JSON config")
    parser.add_argument("--array", nargs="+", metavar="FILE", help="several configs, one run each")
    cli.add_overrides(parser)
    add, counted = parser.add_argument, cli.count()
    add("--nodes", type=counted, default=1, help="machines (default: 1)")
    add("--gpus-per-node", type=counted, default=1, help="GPUs, and ranks, on each (default: 1)")
    add(
        "--cpus-per-task", type=counted, default=8, help="cores of each rank, on Slurm (default: 8)"
    )
    add("--minutes", type=counted, default=1440, help="time limit in minutes (default: 1440)")
    parser.add_argument(
        "--cluster",
        choices=["auto", "slurm", "local"],
        default="auto",
        help="where runs go; local: this machine; auto: Slurm if it is there, else this machine "
        "(default: auto)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over: remove the earlier run")
    parser.add_argument("--dry-run", action="store_true", help="print the script, submit nothing")
    parser.add_argument(
        "--follow",
        nargs="?",
        const=True,
        metavar="RUN",
        help="print the log until the run ends: of the run submitted, or of RUN",
    )
    parser.add_argument("--status", nargs="*", metavar="RUN", help="table of runs (default: runs/)")
    parser.add_argument("--cancel", metavar="RUN", help="make a run save a checkpoint and end")
    args = parser.parse_args()
    other = args.status is not None or args.cancel or isinstance(args.follow, str)
    if bool(args.config) + bool(args.array) + bool(other) != 1:
        raise UserError("expected one of --config, --array, --status, --follow RUN and --cancel")
    return args


def launch(args: argparse.Namespace) -> int:
    """Print the script or submit it, and follow if asked to; return the exit status."""
    try:
        from gam_scale.launch.submit import Request, find_cluster, render, run_dirs, submit
    except ImportError:
        raise UserError("submitit is not installed; expected `make install` first") from None
    cluster, reason = find_cluster()
    if args.cluster != "auto":
        cluster, reason = args.cluster, "--cluster says so"
    elif args.dry_run:
        cluster = "slurm"
    if args.dry_run and cluster == "local":
        raise UserError("--dry-run prints a job script; expected it without --cluster local")
    request = Request(
        configs=args.array or [args.config],
        overrides=args.overrides,
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        minutes=args.minutes,
        cpus_per_task=args.cpus_per_task,
        cluster=cluster,
        fresh=args.fresh,
    )
    if args.dry_run:
        print(render(request))
        return 0
    folders = run_dirs(request)
    print(f"{'Slurm' if cluster == 'slurm' else 'this machine, without Slurm'}: {reason}")
    for job, folder in zip(submit(request), folders, strict=True):
        print(f"job {job.job_id}: {folder}, log {job.paths.stdout}")
    if args.follow:
        return 0 if follow(folders[0]) == "finished" else 1
    return 0


def show(folders: list[str]) -> None:
    """Print the table of runs; one that cannot be read has a row too, and a sentence below."""
    rows, problems = status_table(find_runs(folders), slurm_states())
    out = Table(*COLUMNS)
    for row in rows:
        out.add_row(*row)
    # In a file there is no terminal's width to keep to.
    Console(width=None if sys.stdout.isatty() else 200).print(out)
    if len(problems) == len(rows):
        raise UserError("; ".join(problems))
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
