"""How every command line of ours ends: one line for a user's mistake, a traceback for a defect."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gam_scale.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with what it returns (``None`` is 0).

    A UserError and a full disk become one ``error:`` line and status 2, Ctrl-C status 130; a closed
    pipe (``... | head``) ends quietly. Anything else keeps its traceback.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as error:
        status = _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_BROKEN_PIPE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f"{error.filename}: " if error.filename else ""
        status = _fail(f"{where}no space left on the disk; free some or write elsewhere")
    sys.exit(status)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The ``--set`` option of tools that read a run's config; ``args.overrides`` is a list."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a setting, e.g. train.lr=1e-3 (repeatable)",
    )


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return EXIT_USER_ERROR
