"""A process that has imported everything and forks itself for each command line it is given.

An attack wants hundreds of command lines, each in a process of its own that may be killed, run out
of memory or wreck its interpreter; importing torch for each would take most of the time.

Reads one JSON object a line, writes one back when that command line has ended.
"""

import contextlib
import json
import os
import resource
import runpy
import signal
import sys
import time
import traceback
from typing import Any

from rights import without_roots_rights

MOST_BYTES = 4 << 30
"""Of memory that a command line may allocate: whoever asks for more was given an absurd size."""


def main() -> None:
    """Import what the tools import, then serve until standard input ends."""
    import deepspeed  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    import gam_scale.evaluate.report
    import gam_scale.export.hf
    import gam_scale.plan.job
    import gam_scale.scaling.outputs
    import gam_scale.train.pretrain  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), flush=True)


def _run(
    argv: list[str], cwd: str, out: str, err: str, seconds: float, *, as_anybody: bool
) -> int | None:
    """The exit status; negative: the signal that ended it; None: it had to be killed."""
    child = os.fork()
    if child == 0:
        _be(argv, cwd, out, err, as_anybody=as_anybody)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _be(argv: list[str], cwd: str, out: str, err: str, *, as_anybody: bool) -> None:
    """Become that command line; never returns."""
    status: Any = 1
    try:
        os.setpgid(0, 0)
        os.chdir(cwd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, flags, 0o644), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = argv
        sys.path[0] = os.path.dirname(argv[0])
        with without_roots_rights() if as_anybody else contextlib.nullcontext():
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
        os._exit(status)


if __name__ == "__main__":
    main()
