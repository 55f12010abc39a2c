"""Run one check in this process, as gpu_accept.py starts it."""

import faulthandler
import importlib
import sys
import time
from pathlib import Path

from benchmarks.accept.record import Check
from gam_scale import cli
from gam_scale.hardware.processor import find_device


def main() -> int:
    """Run the parts of a check that are left."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="module whose PARTS to run")
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--seconds",
        type=cli.number(above=0),
        required=True,
        help="seconds until this process is ended",
    )
    parser.add_argument(
        "--leave-out", default="", help="parts to leave out, with commas between them"
    )
    cli.add_device(parser)
    args = parser.parse_args()
    # Shortly before this process is ended, the log gets what every thread is doing.
    faulthandler.dump_traceback_later(max(1.0, args.seconds - 1.0), file=sys.stderr)
    device = find_device(args.device)
    check = Check(args.record, device, args.folder, time.monotonic() + args.seconds)
    parts = importlib.import_module(args.module).PARTS
    return check.run(parts, set(args.leave_out.split(",")))


if __name__ == "__main__":
    cli.run(main)
