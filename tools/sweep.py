#!/usr/bin/env python3
"""Runs for a scaling law: python tools/sweep.py plan|run|status|collect --sweep FILE --out DIR

plan prints every run and its predicted cost; run trains what is missing, one after another or, with
--submit, as a Slurm array, and goes on where it was killed; status says what is done; collect
writes DIR/runs.csv, curves.csv and, where learning rates were varied, lr.csv, which
tools/scaling_report.py reads.
"""

import argparse
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.experiment.worker import train_in_worker, wait_until_free
from gam_scale.launch.status import slurm_states
from gam_scale.launch.status import status as run_status
from gam_scale.scaling.collect import best_multipliers, collect, finished
from gam_scale.scaling.sweep import Cell, cells, jobs, read_sweep, result, write_config
from gam_scale.scaling.words import hours, large, scientific

BUSY = ("running", "queued", "starting", "completing")


def main() -> int:
    """Parse, do the one thing."""
    args = parse()
    spec = read_sweep(args.sweep)
    found = cells(spec, args.out)
    if args.action == "plan":
        plan(found, args.gflops)
    elif args.action == "run":
        return run(jobs(spec, args.out), args)
    elif args.action == "status":
        status(found)
    else:
        for path, rows in collect(found, args.out).items():
            print(f"{rows} rows in {path}")
    return 0


def parse() -> argparse.Namespace:
    """The command line, numbers checked."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["plan", "run", "status", "collect"])
    parser.add_argument("--sweep", required=True, metavar="FILE", help="see configs/sweeps/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs")
    parser.add_argument(
        "--gflops",
        type=cli.number(above=0),
        default=100.0,
        help="GFLOP/s that training reaches on this machine, for the predicted time (100)",
    )
    parser.add_argument("--yes", action="store_true", help="run: do not ask, even on a terminal")
    slurm = parser.add_argument_group("run on Slurm, a job for each trunk and its branches")
    slurm.add_argument("--submit", action="store_true", help="as an array of jobs")
    slurm.add_argument("--partition", default="", metavar="P", help="default: the cluster's")
    slurm.add_argument("--nodes", type=cli.count(), default=1, help="of each job (1)")
    slurm.add_argument("--gpus-per-node", type=cli.count(), default=1, help="ranks on each (1)")
    slurm.add_argument("--cpus-per-task", type=cli.count(), default=8, help="cores of a rank (8)")
    minutes = {"type": cli.count(), "default": 1440}
    slurm.add_argument("--minutes", **minutes, help="time limit of each job (1440)")
    slurm.add_argument("--dry-run", action="store_true", help="print a job's script, submit none")
    args = parser.parse_args()
    if args.dry_run and not args.submit:
        raise UserError("--dry-run prints what --submit would hand in; expected both, or plan")
    return args


def plan(found: list[Cell], gflops: float) -> None:
    """Every run, the cheapest first, and the sum."""
    print(
        f"{'run':<44}{'params':>9}{'tokens':>9}{'FLOPs':>9}{'shared':>8}{'steps':>8}{'batch':>7}"
        f"{'lr':>9}"
    )
    for cell in found:
        train = cell.config.train
        sizes = f"{large(cell.params):>9}{large(cell.tokens):>9}{scientific(cell.flops):>9}"
        shared = f"{cell.shared_steps / train.steps:.0%}" if cell.branches else "-"
        print(
            f"{cell.name:<44}{sizes}{shared:>8}{train.steps:>8,}{train.global_batch_size:>7}"
            f"{train.lr:>9.2g}"
        )
    cost(found, gflops)


def cost(found: list[Cell], gflops: float) -> None:
    """What these runs take, and what branching off one another saves."""
    own, alone = sum(cell.own_flops for cell in found), sum(cell.flops for cell in found)
    took = hours(own / (gflops * 1e9) / 3600)
    print(f"{len(found)} runs, {scientific(own)} FLOPs: {took} hours at {gflops:g} GFLOP/s")
    if own < alone:
        branches = sum(cell.branches for cell in found)
        print(
            f"{branches} of them branch off a longer run, which saves {scientific(alone - own)} "
            f"FLOPs, {1 - own / alone:.0%} of what runs of their own would take"
        )


def run(found: list[list[Cell]], args: argparse.Namespace) -> int:
    """Train what is missing; a run that fails is named, and the others go on."""
    todo = [[cell for cell in job if result(cell) is None] for job in found]
    todo = [job for job in todo if job]
    missing = [cell for job in todo for cell in job]
    total = sum(map(len, found))
    print(f"{total - len(missing)} of {total} runs are done")
    if not missing:
        return 0
    cost(missing, args.gflops)
    asks = sys.stdin.isatty() and not (args.yes or args.dry_run)
    if asks and input("Train them? [y/N] ").strip().lower() not in ("y", "yes"):
        return 1
    if args.submit:
        return submit(todo, args)
    failed = []
    for i, job in enumerate(todo, 1):
        print(f"[{i}/{len(todo)}] {', '.join(cell.name for cell in job)}", flush=True)
        for cell in job:
            wait_until_free(Path(cell.config.log.run_dir))
        configs = [write_config(cell, args.out / "configs") for cell in job]
        log = configs[0].with_suffix(".log")
        ended = train_in_worker(configs, log)
        if unfinished := [cell.name for cell in job if result(cell) is None]:
            failed += unfinished
            names = ", ".join(unfinished)
            print(f"  status {ended.status}, {ended.reason}")
            print(f"  unfinished: {names}; {log}", flush=True)
    if failed:
        print(f"{len(failed)} runs are unfinished; the same command goes on with them")
    return 1 if failed else 0


def submit(todo: list[list[Cell]], args: argparse.Namespace) -> int:
    """Hand in an array of jobs, but for those with a run that is under way already."""
    try:
        from gam_scale.launch.submit import Request, find_cluster, render
        from gam_scale.launch.submit import submit as hand_in
    except ImportError:
        raise UserError("submitit is not installed; expected `make install` first") from None
    cluster, reason = ("slurm", "") if args.dry_run else find_cluster()
    if cluster != "slurm":
        raise UserError(
            f"--submit needs Slurm, but there is {reason}; expected `run` without it, which trains "
            "here, one run after another"
        )
    states = slurm_states()
    free = [job for job in todo if not any(_state(cell, states) in BUSY for cell in job)]
    if len(free) < len(todo):
        print(f"{len(todo) - len(free)} of {len(todo)} jobs are queued or running already")
    if not free:
        return 0
    configs = [[str(write_config(cell, args.out / "configs")) for cell in job] for job in free]
    request = Request(
        configs=[first for first, *_ in configs],
        then=[rest for _, *rest in configs],
        overrides=[],
        nodes=args.nodes,
        gpus_per_node=args.gpus_per_node,
        minutes=args.minutes,
        cpus_per_task=args.cpus_per_task,
        cluster=cluster,
        partition=args.partition,
    )
    if args.dry_run:
        print(render(request))
        return 0
    for handed, job in zip(hand_in(request), free, strict=True):
        print(f"job {handed.job_id}: {', '.join(cell.name for cell in job)}")
    return 0


def _state(cell: Cell, states: dict[str, str] | None) -> str:
    return run_status(Path(cell.config.log.run_dir), states).state


def status(found: list[Cell]) -> None:
    """Which runs are done, begun or missing, and what the learning rate does."""
    states, done = {"done": 0, "begun": 0, "missing": 0}, finished(found)
    rows = {cell.name: row for cell, row in done}
    for cell in found:
        row = rows.get(cell.name)
        begun = Path(cell.config.log.run_dir).exists()
        state = "done" if row else "begun" if begun else "missing"
        states[state] += 1
        loss = "" if not row else "no loss" if row["loss"] is None else f"{row['loss']:.4f}"
        print(f"{cell.name:<44}{state:<9}{loss}")
    print(", ".join(f"{count} {state}" for state, count in states.items()))
    for sentence in best_multipliers(done):
        print(sentence)


if __name__ == "__main__":
    cli.run(main)
