#!/usr/bin/env python3
"""Average a run's last checkpoints: python tools/average_checkpoints.py RUN --last N --out DIR

If the run's learning rate stays up (train.schedule constant, or wsd before its decay), the mean
often does what a decay would. DIR is a run directory that every other tool takes. To train on from
it, name it in checkpoint.continue_from of a new run, which begins with a new optimizer.
"""

from pathlib import Path

from gam_scale import cli
from gam_scale.export.average import average, checkpoints_of
from gam_scale.export.folder import check_is_new


def main() -> None:
    """Parse the command line, average the checkpoints and print where the result is."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory, for all checkpoints in it, the best one included; or step-* folders "
        "of one run",
    )
    parser.add_argument(
        "--last",
        type=cli.count(0),
        default=0,
        metavar="N",
        help="take only the newest N checkpoints of a run directory; 0: all (default: 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="new or empty run directory to write",
    )
    args = parser.parse_args()
    check_is_new(args.out)  # before anything is read
    folders = checkpoints_of(args.checkpoints, args.last)
    written = average(folders, args.out)
    steps = ", ".join(f"{int(folder.name.removeprefix('step-')):,}" for folder in folders)
    print(f"wrote {written}, the mean of steps {steps}")


if __name__ == "__main__":
    cli.run(main)
