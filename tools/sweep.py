#!/usr/bin/env python3
"""Runs for a scaling law: python tools/sweep.py plan|run|status|collect --sweep FILE --out DIR

plan prints every run and its predicted cost; run trains what is missing, one after another, and
goes on where it was killed; status says what is done; collect writes DIR/runs.csv, which
tools/scaling_report.py reads.
"""

import argparse
import csv
import io
import subprocess
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.files import write_bytes
from gam_scale.scaling.sweep import Cell, cells, read_sweep, result, write_config
from gam_scale.scaling.words import hours, large, scientific

PRETRAIN = Path(__file__).with_name("pretrain.py")


def main() -> int:
    """Parse, do the one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["plan", "run", "status", "collect"])
    parser.add_argument("--sweep", required=True, metavar="FILE", help="see configs/sweeps/")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the runs")
    parser.add_argument(
        "--gflops",
        type=float,
        default=100.0,
        help="GFLOP/s that training reaches on this machine, for the predicted time (100)",
    )
    args = parser.parse_args()
    if not 0 < args.gflops < float("inf"):
        raise UserError(f"--gflops is {args.gflops:g}; expected more than 0")
    found = cells(read_sweep(args.sweep), args.out)
    if args.action == "plan":
        plan(found, args.gflops)
    elif args.action == "run":
        return run(found, args.out, args.gflops)
    elif args.action == "status":
        status(found)
    else:
        collect(found, args.out)
    return 0


def plan(found: list[Cell], gflops: float) -> None:
    """Every run, the cheapest first, and the sum."""
    print(f"{'run':<40}{'params':>9}{'tokens':>9}{'FLOPs':>9}{'steps':>8}{'batch':>7}{'lr':>9}")
    for cell in found:
        train = cell.config.train
        sizes = f"{large(cell.params):>9}{large(cell.tokens):>9}{scientific(cell.flops):>9}"
        print(
            f"{cell.name:<40}{sizes}{train.steps:>8,}{train.global_batch_size:>7}{train.lr:>9.2g}"
        )
    cost(found, gflops)


def cost(found: list[Cell], gflops: float) -> None:
    """One line on what these runs take."""
    total = sum(cell.flops for cell in found)
    took = hours(total / (gflops * 1e9) / 3600)
    print(f"{len(found)} runs, {scientific(total)} FLOPs: {took} hours at {gflops:g} GFLOP/s")


def run(found: list[Cell], out: Path, gflops: float) -> int:
    """Train what is missing; a run that fails is named, and the others go on."""
    missing = [cell for cell in found if result(cell) is None]
    print(f"{len(found) - len(missing)} of {len(found)} runs are done")
    cost(missing, gflops)
    failed = []
    for i, cell in enumerate(missing, 1):
        config = write_config(cell, out / "configs")
        print(f"[{i}/{len(missing)}] {cell.name}", flush=True)
        log = out / "configs" / f"{cell.name}.log"
        with open(log, "ab") as file:
            command = [sys.executable, str(PRETRAIN), "--config", str(config)]
            done = subprocess.run(command, stdout=file, stderr=file)
        if result(cell) is None:
            failed.append(cell.name)
            print(f"  ended with status {done.returncode}, unfinished: {log}", flush=True)
    if failed:
        print(f"{len(failed)} runs are unfinished; the same command goes on with them")
    return 1 if failed else 0


def status(found: list[Cell]) -> None:
    """Which runs are done, begun or missing."""
    states = {"done": 0, "begun": 0, "missing": 0}
    for cell in found:
        row = result(cell)
        begun = Path(cell.config.log.run_dir).exists()
        state = "done" if row else "begun" if begun else "missing"
        states[state] += 1
        loss = f"{row['loss']:.4f}" if row else ""
        print(f"{cell.name:<40}{state:<9}{loss}")
    print(", ".join(f"{count} {state}" for state, count in states.items()))


def collect(found: list[Cell], out: Path) -> None:
    """Write the finished runs as CSV."""
    rows = [row for cell in found if (row := result(cell)) is not None]
    if not rows:
        raise UserError(
            f"{out} has no finished run of this sweep; expected tools/sweep.py run first"
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(out / "runs.csv", text.getvalue().encode())
    print(f"{len(rows)} of {len(found)} runs in {out / 'runs.csv'}")


if __name__ == "__main__":
    cli.run(main)
