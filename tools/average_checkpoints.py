#!/usr/bin/env python3
"""The mean of a run's last checkpoints: python tools/average_checkpoints.py RUN --last N --out DIR

Of a run whose learning rate stays up (train.schedule constant, or wsd before its decay), it often
does what a decay would. DIR is a run directory that every other tool takes; to train on from it,
name it as checkpoint.continue_from of a new run, which begins with a new optimizer.
"""

from pathlib import Path

from gam_scale import cli
from gam_scale.export.average import average, checkpoints_of
from gam_scale.export.folder import check_is_new


def main() -> None:
    """Parse, average, say where the result is."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="step-* folders of one run, or its directory for all that it kept, a best one as well",
    )
    parser.add_argument(
        "--last",
        type=cli.count(0),
        default=0,
        metavar="N",
        help="of a run directory, its newest N checkpoints (default: 0, all)",
    )
    parser.add_argument("--out", type=Path, required=True, help="run directory to make")
    args = parser.parse_args()
    check_is_new(args.out)  # before anything is read
    folders = checkpoints_of(args.checkpoints, args.last)
    written = average(folders, args.out)
    steps = ", ".join(f"{int(folder.name.removeprefix('step-')):,}" for folder in folders)
    print(f"wrote {written}, the mean of steps {steps}")


if __name__ == "__main__":
    cli.run(main)
