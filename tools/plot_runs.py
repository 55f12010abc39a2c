#!/usr/bin/env python3
"""Loss curves of several runs in one figure: python tools/plot_runs.py RUN [RUN ...] --out FILE.png

Lines are training loss, dots validation loss, both in nats per token, against tokens trained on.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.run.metrics_file import read_metrics

SUFFIXES = (".png", ".svg", ".pdf")


def main() -> None:
    """Parse, plot, save."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, required=True, help="the .png, .svg or .pdf to write")
    parser.add_argument("--title", default="", help="above the figure (none)")
    args = parser.parse_args()
    if args.out.suffix not in SUFFIXES or args.out.is_dir():
        raise UserError(f"--out is {args.out}; expected a file that ends in {', '.join(SUFFIXES)}")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    plotted = [run for run in args.runs if _plot(axes, run)]
    if not plotted:
        raise UserError("no RUN holds a metrics.jsonl with a loss; expected run directories")
    axes.set(xlabel="tokens", ylabel="loss (nats per token)", title=args.title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    try:
        figure.savefig(args.out, dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--out {args.out} cannot be written: {error}") from None


def _plot(axes: plt.Axes, run: Path) -> bool:
    """Draw a run; what is none, as `runs/*` may name, is said and left out."""
    metrics = run / "metrics.jsonl"
    found = read_metrics(metrics) if run.is_dir() else []
    lines = [line for line in found if line.get("loss") is not None]
    if not lines:
        print(f"leaving out {run}: it holds no metrics.jsonl with a loss", file=sys.stderr)
        return False
    (curve,) = axes.plot([m["tokens"] for m in lines], [m["loss"] for m in lines], lw=1.2)
    valid = [m for m in lines if m.get("val_loss") is not None]
    label = f"{run.name}: {valid[-1]['val_loss']:.3f} on validation" if valid else run.name
    curve.set_label(label)
    axes.plot(
        [m["tokens"] for m in valid], [m["val_loss"] for m in valid], "o", color=curve.get_color()
    )
    return True


if __name__ == "__main__":
    cli.run(main)
