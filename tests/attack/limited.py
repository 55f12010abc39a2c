"""Run a command line of tools/*.py with limits, so that it cannot harm the machine.

``python limited.py RIGHTS TOOL ARGUMENTS...``: RIGHTS is ``anybody`` to run it without root's.
"""

import contextlib
import os
import resource
import runpy
import sys
import traceback
from typing import Any

from rights import without_roots_rights

MOST_BYTES = 4 << 30
"""The memory that it may allocate; only a command given an absurd size asks for more."""


def main(rights: str, *argv: str) -> None:
    """Become the command line and never return."""
    status: Any = 1
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv[:], sys.path[0] = argv, os.path.dirname(argv[0])
        with without_roots_rights() if rights == "anybody" else contextlib.nullcontext():
            runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)  # quicker than Python's own exit, and there are hundreds


if __name__ == "__main__":
    main(*sys.argv[1:])
