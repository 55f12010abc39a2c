#!/usr/bin/env python3
"""Write the page of a run: python tools/report.py RUN [...]

RUN is a run directory in any state: finished, in training, or killed. Its report.html shows the
losses and figures so far, the texts that it wrote, and every setting. A run that ends writes this
page itself, and removes it when it goes on; this tool writes it at any time, also again.
"""

import argparse
from pathlib import Path

from gam_scale import cli
from gam_scale.errors import UserError
from gam_scale.run.report import write_report


def main() -> None:
    """Parse the command line, and write and name each page."""
    for run in parse().runs:
        print(f"page: {write_report(run)}")


def parse() -> argparse.Namespace:
    """Return the parsed command line, whose run directories are all there."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    args = parser.parse_args()
    for run in args.runs:
        if not (run / "config.json").exists():
            raise UserError(f"{run} has no config.json; expected a run directory")
    return args


if __name__ == "__main__":
    cli.run(main)
