#!/usr/bin/env python3
"""Fit scaling laws to runs and report them: python tools/scaling_report.py --csv FILE --out DIR

The CSV has a row for every measured loss. DIR gets fit.json, report.html, report.md, the figures as
PNG and SVG, and CSVs of the fit to each run, the frontier and the extrapolation. --curves, --lr and
--evaluation add what else is known of the runs, from tools/sweep.py collect and tools/evaluate.py.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

from gam_scale import cli
from gam_scale.files import read_regular
from gam_scale.scaling.analysis import TARGETS, Settings, analyse
from gam_scale.scaling.bootstrap import RESAMPLES
from gam_scale.scaling.compare import DRAWS
from gam_scale.scaling.cost import GPUS, MFU, Cost
from gam_scale.scaling.fit import DELTA, GRID, FitSettings
from gam_scale.scaling.outputs import write_report
from gam_scale.scaling.runs_csv import COLUMNS, REQUIRED, UNITS, read_csv
from gam_scale.scaling.supplement import read_supplement
from gam_scale.scaling.words import does_not_show, shows


def main() -> None:
    """Parse, fit, write, say what was found."""
    args = parse()
    fitting = FitSettings(args.huber_delta, args.grid, args.shared_exponent)
    settings = Settings(fitting, args.bootstrap, args.test_draws, args.seed, tuple(args.targets))
    cost = Cost.of(args.gpus, args.mfu)
    points = read_csv(*args.csv, unit=args.loss_unit)
    supplement = read_supplement(args.curves, args.lr, args.evaluation, args.sweep, args.limit)
    analysis = analyse(points, settings)
    source = ", ".join(
        f"{path.name} (sha256 {hashlib.sha256(read_regular(path)).hexdigest()[:16]})"
        for path in args.csv
    )
    written = write_report(analysis, cost, source, args.out, supplement)
    for sentence in shows(analysis):
        print(sentence)
    print("\nWhat the runs do not show:")
    for sentence in [*does_not_show(analysis), *supplement.sentences()]:
        print(f"  {sentence}")
    print(f"\n{written[1]} and {len(written) - 1} more files, fit.json among them")


def parse() -> argparse.Namespace:
    """The command line, numbers checked."""
    columns = "\n".join(
        f"  {name:<8}{'' if name in REQUIRED else '(optional) '}{text}"
        for name, text in COLUMNS.items()
    )
    parser = cli.Parser(
        description=__doc__.splitlines()[0],
        epilog=f"columns of the CSV; others are ignored:\n{columns}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--csv", type=Path, required=True, nargs="+", metavar="FILE", help="the runs"
    )
    parser.add_argument(
        "--loss-unit",
        choices=list(UNITS),
        help="of the column loss (nats per token); bits and perplexity are per token, too",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the report")
    add_files: dict[str, Any] = {"type": Path, "action": "append", "default": [], "metavar": "FILE"}
    parser.add_argument("--curves", **add_files, help="training losses: curves.csv (repeatable)")
    parser.add_argument("--lr", type=Path, metavar="FILE", help="learning rates: lr.csv")
    parser.add_argument(
        "--evaluation",
        **add_files,
        help="loss by position and recall: JSON of tools/evaluate.py (repeatable)",
    )
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="its settings, to be shown")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sentence on what the runs do not show (repeatable)",
    )
    parser.add_argument(
        "--huber-delta", type=cli.number(above=0), default=DELTA, help=f"on log L ({DELTA:g})"
    )
    parser.add_argument(
        "--grid", type=cli.count(1, 20), default=GRID, help=f"starts per dimension ({GRID})"
    )
    parser.add_argument(
        "--bootstrap", type=cli.count(0, 100_000), default=RESAMPLES, help=f"refits ({RESAMPLES})"
    )
    parser.add_argument("--shared-exponent", action="store_true", help="fit with alpha = beta")
    parser.add_argument(
        "--test-draws",
        type=cli.count(0, 100_000),
        default=DRAWS,
        help=f"data sets per test ({DRAWS}); 0: no tests",
    )
    parser.add_argument(
        "--seed", type=cli.count(0), default=0, help="of refits and simulations (0)"
    )
    parser.add_argument(
        "--targets",
        type=cli.number(above=0, below=1e15),
        nargs="+",
        default=list(TARGETS),
        metavar="N",
        help="parameters to extrapolate to (1e9 7e9)",
    )
    parser.add_argument(
        "--gpus",
        type=cli.several(str),
        default=list(GPUS),
        help=f"for the costs ({','.join(GPUS)})",
    )
    parser.add_argument(
        "--mfu",
        type=cli.number(above=0, at_most=1),
        default=MFU,
        help=f"share of their rate ({MFU})",
    )
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
