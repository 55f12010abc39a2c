#!/usr/bin/env python3
"""The paper's tables again: python tools/reproduce_paper.py --table 1 2 3 --out DIR [--scale F]

Table 1 trains GAM, Transformer and Mamba on WikiText-2 and TinyStories, table 3 GAM's ablations on
WikiText-2: as published, from the scaled initialisation, and without the other handicaps. Table 2
times one block. The same command goes on where it was stopped and repeats nothing that is done;
DIR/page/ holds what is done so far as report.html, report.md and CSVs. --scale below 1 shrinks the
runs by the rule that the page states.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.reproduce.cells import Cell, DataSet, cells, result, write_config
from gam_scale.scaling.words import hours, scientific

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN = ROOT / "tools" / "pretrain.py"


def main() -> int:
    """Plan, run what is missing, write the page."""
    args = parse()
    found = planned(args)
    return train(found, args.out)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=int, nargs="+", required=True, choices=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of runs and page")
    parser.add_argument("--scale", type=float, default=1.0, metavar="F", help="1: the paper's size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--wikitext2", metavar="DIR", help="prepared set (README, The models)")
    parser.add_argument("--tinystories", metavar="DIR", help="prepared set")
    cli.add_overrides(parser)
    return parser.parse_args()


def planned(args: argparse.Namespace) -> list[Cell]:
    """The runs of tables 1 and 3, each once."""
    wanted = {1: ("wikitext2", "tinystories"), 2: (), 3: ("wikitext2",)}
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
    order = {seed: i for i, seed in enumerate(args.seeds)}
    return sorted(found.values(), key=lambda cell: (order[cell.seed], cell.flops))


def train(found: list[Cell], out: Path) -> int:
    """Train what is missing; a run that fails is named, and the others go on."""
    configs = out / "configs"
    missing = [cell for cell in found if result(cell, configs) is None]
    flops = sum(cell.flops for cell in missing)
    print(f"{len(found) - len(missing)} of {len(found)} runs are done")
    if missing:
        took = hours(flops / 1e11 / 3600)
        print(f"{len(missing)} runs, {scientific(flops)} FLOPs: {took} hours at 100 GFLOP/s")
    failed = []
    for i, cell in enumerate(missing, 1):
        config = write_config(cell, configs)
        print(f"[{i}/{len(missing)}] {cell.name}", flush=True)
        log = configs / f"{cell.name}.log"
        with open(log, "ab") as file:
            command = [sys.executable, str(PRETRAIN), "--config", str(config)]
            done = subprocess.run(command, stdout=file, stderr=file)
        if result(cell, configs) is None:
            failed.append(cell.name)
            print(f"  ended with status {done.returncode}, unfinished: {log}", flush=True)
    if failed:
        print(f"{len(failed)} runs are unfinished; the same command goes on with them")
    return 1 if failed else 0


if __name__ == "__main__":
    cli.run(main)
