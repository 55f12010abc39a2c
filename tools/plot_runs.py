#!/usr/bin/env python3
"""Plot loss curves of several runs: python tools/plot_runs.py RUN [RUN ...] --out FILE.png

Lines are training loss, dots validation loss, both in nats per token, against tokens trained on.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.report.axes import quieten, ticks_y
from gam_scale.report.figure import Figure
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large
from gam_scale.run.metrics_file import Line, read_metrics

SUFFIXES = (".png", ".svg", ".pdf")


def main() -> None:
    """Parse the command line, plot and save."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, required=True, help="file to write: .png, .svg or .pdf")
    parser.add_argument("--title", default="", help="title above the figure (default: none)")
    args = parser.parse_args()
    if args.out.suffix not in SUFFIXES or args.out.is_dir():
        raise UserError(f"--out is {args.out}; expected a file that ends in {', '.join(SUFFIXES)}")
    curves = [(run.name, lines) for run in args.runs if (lines := losses(run))]
    if not curves:
        raise UserError("no RUN holds a metrics.jsonl with a loss; expected run directories")
    try:
        args.out.write_bytes(figure(curves, args.title).file(args.out.suffix[1:]))
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be written: {error}") from None


def losses(run: Path) -> list[Line]:
    """Return the lines with a loss; say if there are none, as `runs/*` may name other folders."""
    lines = read_metrics(run / "metrics.jsonl") if run.is_dir() else []
    lines = [line for line in lines if line.get("loss") is not None]
    if not lines:
        print(f"leaving out {run}: it holds no metrics.jsonl with a loss", file=sys.stderr)
    return lines


def figure(curves: Sequence[tuple[str, list[Line]]], title: str) -> Figure:
    """Return the figure of these curves, each a run's name and its lines with a loss."""
    validated = [[line for line in lines if line.get("val_loss")] for _, lines in curves]
    keys = tuple(
        (i, f"{name}: {valid[-1]['val_loss']:.3f} on validation" if valid else name)
        for i, ((name, _), valid) in enumerate(zip(curves, validated, strict=True))
    )

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, ((_, lines), valid) in enumerate(zip(curves, validated, strict=True)):
            colour = palette.line(i)
            axes.plot(*columns(lines, "loss"), lw=1.2, color=colour, ls=palette.dash(i))
            axes.plot(*columns(valid, "val_loss"), "o", color=colour)
        axes.xaxis.set_major_formatter(lambda tokens, _: large(tokens))
        ticks_y(axes)
        axes.set_xlabel("tokens", color=palette.quiet)
        axes.set_ylabel("loss, nats per token", color=palette.quiet)
        quieten(axes, palette)

    return Figure("loss", title, "", draw, keys)


def columns(lines: Sequence[Line], key: str) -> tuple[list[float], list[float]]:
    """Return the tokens trained on, and the values of ``key`` measured after them."""
    return [line["tokens"] for line in lines], [line[key] for line in lines]


if __name__ == "__main__":
    cli.run(main)
