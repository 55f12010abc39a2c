#!/usr/bin/env python3
"""Fit scaling laws to runs and report them: python tools/scaling_report.py --csv FILE --out DIR

The CSV has a row for every measured loss. DIR gets fit.json, report.html, report.md, the figures as
PNG and SVG, the laws as LaTeX, and CSVs of the laws, of the fit to each run, of the frontier and of
the extrapolation. They replace the files of an earlier report, but never an input. --curves, --lr
and --evaluation add other results of the runs, from tools/sweep.py collect and tools/evaluate.py.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale import cli
from gam_scale.errors import UserError, one_line
from gam_scale.scaling.analysis import Settings, analyse
from gam_scale.scaling.bootstrap import FEWEST, RESAMPLES
from gam_scale.scaling.columns import FURTHER
from gam_scale.scaling.compare import DRAWS
from gam_scale.scaling.cost import GPUS, MFU, Cost
from gam_scale.scaling.extrapolation import Model
from gam_scale.scaling.fit import DELTA, GRID, FitSettings
from gam_scale.scaling.holdout import RULES
from gam_scale.scaling.names import readable
from gam_scale.scaling.outputs import check_folder, write_report
from gam_scale.scaling.points import Points
from gam_scale.scaling.runs_csv import COLUMNS, REQUIRED, UNITS, read_csv
from gam_scale.scaling.source import Source
from gam_scale.scaling.supplement import read_supplement
from gam_scale.scaling.words import does_not_show, shows


def main() -> None:
    """Parse the command line, fit, write the report and print what was found."""
    args = parse()
    fitting = FitSettings(args.huber_delta, args.grid, args.shared_exponent)
    settings = Settings(
        fitting,
        args.bootstrap,
        args.test_draws,
        args.seed,
        tuple(args.targets),
        tuple(args.at),
        args.hold_out,
        args.min_steps,
    )
    cost = Cost.of(args.gpus, args.mfu)
    source = Source.of(args.csv)
    points = read_csv(*args.csv, unit=args.loss_unit, shared_exponent=args.shared_exponent)
    supplement = read_supplement(
        args.curves,
        args.lr,
        args.evaluation,
        args.sweep,
        args.contexts,
        args.limit,
        args.forecast,
        args.forecast_runs,
        args.loss_unit,
    )
    given = [*args.csv, *args.curves, args.lr, *args.evaluation, args.sweep, args.contexts]
    given += [args.forecast, args.forecast_runs]
    inputs = [path for path in given if path is not None]
    check_folder(args.out, inputs)
    check_rule(args.hold_out, points)
    check_models(args.at, points)
    analysis = analyse(points, settings, Progress())
    written = write_report(analysis, cost, source, args.out, supplement, inputs)
    analysis, supplement = readable(analysis, supplement)
    for sentence in [*shows(analysis), *supplement.shown()]:
        print(sentence)
    print("\nWhat the runs do not show:")
    for sentence in [*does_not_show(analysis), *supplement.sentences()]:
        print(f"  {sentence}")
    print(f"\n{written[1]} and {len(written) - 1} more files, fit.json among them")


class Progress:
    """Prints to stderr what is being done, at most one line a second."""

    def __init__(self) -> None:
        self._last = -float("inf")

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= 1:
            print(one_line(line, 200), file=sys.stderr, flush=True)
            self._last = time.monotonic()


def check_rule(rule: str, points: Points) -> None:
    """Refuse to hold out runs by a column that the CSV does not have."""
    column = rule.partition("=")[0].strip().lower()
    if "=" in rule and column not in points.columns:
        there = ", ".join(points.columns) or "none"
        raise UserError(
            f"--hold-out is {one_line(rule)}; expected a column of the CSV other than its numbers: "
            f"{there}"
        )


def check_models(models: Sequence[Model], points: Points) -> None:
    """Refuse to predict a model of a family that the CSV does not have."""
    for each in models:
        if each.family and each.family not in points.families:
            raise UserError(
                f"--at has the family {one_line(each.family)}; expected one of the CSV's: "
                f"{', '.join(map(one_line, points.families))}"
            )


def model(text: str) -> Model:
    """Parse ``N,D`` or ``FAMILY:N,D``: parameters and tokens."""
    family, colon, pair = text.rpartition(":")
    numbers = cli.several(cli.number(above=0, below=1e20))(pair)
    if len(numbers) != 2 or bool(colon) > bool(family):
        raise argparse.ArgumentTypeError(
            f"is {one_line(text)}; expected N,D or FAMILY:N,D as in 7e9,1.4e11"
        )
    return Model(numbers[0], numbers[1], family)


def rule(text: str) -> str:
    """Parse which runs are held out."""
    if text not in RULES and not all(text.partition("=")):
        raise argparse.ArgumentTypeError(
            f"is {one_line(text)}; expected {', '.join(RULES)} or COLUMN=VALUE"
        )
    return text


def refits(text: str) -> int:
    """The ``type`` of --bootstrap."""
    value = cli.count(0, 100_000)(text)
    if 0 < value < FEWEST:
        raise argparse.ArgumentTypeError(f"is {value}; expected at least {FEWEST}, or 0 for none")
    return value


def parse() -> argparse.Namespace:
    """Return the parsed command line, its numbers checked."""
    columns = "\n".join(
        f"  {name:<8}{'' if name in REQUIRED else '(optional) '}{text}"
        for name, text in COLUMNS.items()
    )
    further = "\n".join(f"  {name:<12} {text}" for name, text in FURTHER.items())
    parser = cli.Parser(
        description=__doc__.splitlines()[0],
        epilog=f"columns of the CSV:\n{columns}\n"
        f"shown where they are there; others are ignored:\n{further}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--csv",
        type=Path,
        required=True,
        nargs="+",
        metavar="FILE",
        help="the runs: a row for every measured loss",
    )
    parser.add_argument(
        "--loss-unit",
        choices=list(UNITS),
        help="unit, per token, of the column loss in --csv and --forecast-runs (default: nats); "
        "other files are in nats",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the report"
    )
    add_files: dict[str, Any] = {"type": Path, "action": "append", "default": [], "metavar": "FILE"}
    parser.add_argument(
        "--curves", **add_files, help="curves.csv, with training losses (repeatable)"
    )
    parser.add_argument(
        "--lr", type=Path, metavar="FILE", help="lr.csv, with losses at several learning rates"
    )
    parser.add_argument(
        "--evaluation",
        **add_files,
        help="JSON of tools/evaluate.py, with loss by position and recall (repeatable)",
    )
    parser.add_argument(
        "--contexts",
        type=Path,
        metavar="FILE",
        help="contexts.csv, with runs on texts of other lengths",
    )
    parser.add_argument(
        "--forecast",
        type=Path,
        metavar="FILE",
        help="extrapolation.csv of an earlier report with --at, with the forecasts",
    )
    parser.add_argument(
        "--forecast-runs",
        type=Path,
        metavar="FILE",
        help="forecast.csv of tools/sweep.py collect, or another CSV of the losses that these "
        "models reached",
    )
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE", help="the sweep's file, whose settings are shown"
    )
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="TEXT",
        help="sentence on what the runs do not show, for the report (repeatable)",
    )
    parser.add_argument(
        "--huber-delta",
        type=cli.number(above=0),
        default=DELTA,
        help=f"delta of the Huber loss on log L (default: {DELTA:g})",
    )
    parser.add_argument(
        "--grid",
        type=cli.count(1, 20),
        default=GRID,
        help=f"starting points of the fit per dimension (default: {GRID})",
    )
    parser.add_argument(
        "--bootstrap",
        type=refits,
        default=RESAMPLES,
        help=f"refits to resampled runs, for intervals; 0: no intervals (default: {RESAMPLES})",
    )
    parser.add_argument("--shared-exponent", action="store_true", help="fit with alpha = beta")
    parser.add_argument(
        "--test-draws",
        type=cli.count(0, 100_000),
        default=DRAWS,
        help=f"simulated data sets per test; 0: no tests (default: {DRAWS})",
    )
    parser.add_argument(
        "--seed", type=cli.count(0), default=0, help="seed of refits and simulations (default: 0)"
    )
    parser.add_argument(
        "--targets",
        type=cli.number(above=0, below=1e15),
        nargs="+",
        default=[],
        metavar="N",
        help="numbers of parameters to extrapolate to (default: 10 and 100 times the largest "
        "model's)",
    )
    parser.add_argument(
        "--at",
        type=model,
        nargs="+",
        default=[],
        metavar="[FAMILY:]N,D",
        help="parameters and tokens of models whose loss to predict, such as 7e9,1.4e11, by the "
        "law of one family or of every",
    )
    parser.add_argument(
        "--hold-out",
        type=rule,
        default=RULES[0],
        metavar="RUNS",
        help="runs that a further fit leaves out and predicts; sizes: the largest models; budgets: "
        "those of most FLOPs; COLUMN=VALUE: the rows that have it; none (default: sizes)",
    )
    parser.add_argument(
        "--min-steps",
        type=cli.count(0),
        default=0,
        metavar="N",
        help="leave out runs of fewer than N optimizer steps (default: 0); needs a column steps, "
        "or batch and seq_len",
    )
    parser.add_argument(
        "--gpus",
        type=cli.several(str),
        default=list(GPUS),
        help=f"GPUs whose costs are shown (default: {', '.join(GPUS)})",
    )
    parser.add_argument(
        "--mfu",
        type=cli.number(above=0, at_most=1),
        default=MFU,
        help=f"share of these GPUs' peak rate that training reaches (default: {MFU})",
    )
    args = parser.parse_args()
    if args.forecast_runs and not args.forecast:
        raise UserError("--forecast-runs has runs of no forecast; expected --forecast as well")
    return args


if __name__ == "__main__":
    cli.run(main)
