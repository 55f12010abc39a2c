#!/usr/bin/env python3
"""Check whether this GPU does what the project says: eleven checks, ten minutes, no network.

    python -m benchmarks.gpu_accept --out accept       # all checks on the GPU
    python -m benchmarks.gpu_accept --only 1,4         # some of them
    python -m benchmarks.gpu_accept --device cpu       # shrunk, to see that they run: no figures

Every check runs in a process of its own and has a share of ``--minutes``; time that it leaves
unused goes to the later checks. A process that dies or hangs is ended, what it measured is kept,
and the rest of its check continues in a new process. The folder gets ``results.jsonl``, with a line
for each check as soon as it is over, the table ``table.md``, and what check N printed in
``checkN.log``. The exit status is 1 if a check failed. docs/gpu.md says what each line means, and
which wheels are needed on a machine that has only Python and torch.
"""

import json
import signal
import time
from pathlib import Path

from benchmarks.accept.catalogue import CHECKS
from benchmarks.accept.start import run_check
from benchmarks.accept.table import table
from gam_scale import cli

MINUTES = 9.5
"""Default of --minutes; the rest of ten is for the table and for a machine that starts slowly."""


def main() -> int:
    """Run the checks, print and save the table, and return the exit status."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    numbers = cli.several(cli.count(0, len(CHECKS) - 1))
    parser.add_argument(
        "--only",
        type=numbers,
        default=list(range(len(CHECKS))),
        help="numbers of the checks to run (default: all)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("accept"), help="folder for the results (default: accept)"
    )
    parser.add_argument(
        "--minutes",
        type=cli.number(above=0),
        default=MINUTES,
        help=f"minutes for all checks together (default: {MINUTES})",
    )
    cli.add_device(parser)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    lines, page = out / "results.jsonl", out / "table.md"
    lines.unlink(missing_ok=True)
    begun, asked = time.monotonic(), sorted(set(args.only))
    shares, given, results = sum(CHECKS[number].seconds for number in asked), 0, []
    for number in asked:
        given += CHECKS[number].seconds
        ends = begun + args.minutes * 60 * given / shares
        print(f"{number} {CHECKS[number].title}", flush=True)
        try:
            result = run_check(number, CHECKS[number], args.device, out, ends, _tell)
        except Exception as error:  # no failure may cost the later checks
            result = {"check": number, "title": CHECKS[number].title, "status": "failed"}
            result |= {"seconds": 0.0, "error": repr(error), "parts": {}}
        results.append(result)
        _tell(f"   {results[-1]['status']}, {results[-1]['seconds']:.0f} s")
        with open(lines, "a") as file:
            file.write(json.dumps(results[-1]) + "\n")
        page.write_text(table(results))
    print(f"\n{page.read_text()}\n{lines} and {page.name} hold this")
    return int(any(result["status"] != "ok" for result in results))


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    # A check's processes are in a session of their own, so that no signal reaches them by itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli.run(main)
