"""What our command lines share: flags, exit statuses, and one line for a user's mistake."""

import argparse
import contextlib
import errno
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gam_scale.errors import EndedByOthers, MistakeElsewhere, UserError, one_line
from gam_scale.files import allow_many_files
from gam_scale.strict import LARGEST_INT, is_text

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
ABOUT_PATHS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL),
)
"""The system's errors about a path that a user can mend: by another path, or permissions."""


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run ``main`` and exit with what it returns (``None`` is 0).

    A UserError, a full disk, memory that ran out and a path that cannot be used become one
    ``error:`` line and status 2, Ctrl-C status 130; a closed pipe (``... | head``) ends quietly.
    Anything else keeps its traceback.
    """
    allow_many_files()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names may hold bytes that no terminal can show
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main() or 0
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_BROKEN_PIPE
    except Exception as error:
        if (known := ending(error)) is None:
            raise
        status, message = known
        print(f"error: {message}", file=sys.stderr)
        if not isinstance(error, EndedByOthers):
            _tell_torchrun(f"error: {message}")
    sys.exit(status)


def exit_status(error: BaseException) -> int:
    """Return the exit status of a command that ends with ``error``."""
    known = ending(error)
    return known[0] if known else EXIT_FAILED


def ending(error: BaseException) -> tuple[int, str] | None:
    """Return the exit status and the sentence for a command's ``error``; None for a defect."""
    if isinstance(error, EndedByOthers):
        mistake = isinstance(error, MistakeElsewhere)
        return EXIT_USER_ERROR if mistake else EXIT_FAILED, str(error)
    message = None
    if isinstance(error, UserError):
        message = str(error)
    elif isinstance(error, OSError):
        message = _about_a_path(error)
    elif isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    ):
        message = "memory ran out on the CPU; expected smaller sizes, or more memory"
    return None if message is None else (EXIT_USER_ERROR, message)


def _about_a_path(error: OSError) -> str | None:
    """Return a sentence for an error about a path or its disk that a user can mend; else None."""
    where = f"{one_line(os.fsdecode(error.filename), 300)}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}no space left on the disk; free some or write elsewhere"
    if error.errno in ABOUT_PATHS and error.filename:
        reason = (error.strerror or "").lower()
        return f"{where}{reason}; expected a path that can be used so"
    return None


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a UserError for a mistake; flags cannot be abbreviated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found, as a sentence: ``--flag is 3; expected ...``."""
        message = re.sub(r"^argument (\S+): (?=is )", r"\1 ", message)
        message = re.sub(r"^argument ", "", message)
        raise UserError(" ".join(message.split()))


def count(at_least: int = 1, at_most: int = LARGEST_INT - 1) -> Callable[[str], int]:
    """A flag's ``type`` in argparse: a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not at_least <= value <= at_most:
            bounds = f"at least {at_least}" + (f", at most {at_most}" * (at_most < LARGEST_INT - 1))
            raise argparse.ArgumentTypeError(
                f"is {one_line(text)}; expected a whole number, {bounds}"
            )
        return value

    return parse


def number(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Callable[[str], float]:
    """A flag's ``type`` in argparse: a finite number within bounds."""
    bounds = {
        "at least": (at_least, lambda v, b: v >= b),
        "more than": (above, lambda v, b: v > b),
        "at most": (at_most, lambda v, b: v <= b),
        "less than": (below, lambda v, b: v < b),
    }
    given = {name: pair for name, pair in bounds.items() if pair[0] is not None}

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not all(test(value, b) for b, test in given.values()):
            wanted = "".join(f", {name} {bound:g}" for name, (bound, _) in given.items())
            raise argparse.ArgumentTypeError(
                f"is {one_line(text)}; expected a finite number{wanted}"
            )
        return value

    return parse


def several(parse: Callable[[str], Any]) -> Callable[[str], list]:
    """A flag's ``type`` in argparse: values separated by commas, each read by ``parse``."""
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def one_of(*names: str) -> Callable[[str], str]:
    """A flag's ``type`` in argparse, or for :func:`several`: one of ``names``."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(
                f"is {one_line(text)}; expected one of {', '.join(names)}"
            )
        return text

    return parse


def text(value: str) -> str:
    """A flag's ``type`` in argparse: valid text, since a shell may hand over any bytes."""
    if not is_text(value):
        raise argparse.ArgumentTypeError(f"is {one_line(value)}; expected text in UTF-8")
    return value


def add_device(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Add the ``--device`` option, which hardware.processor.find_device reads."""
    parser.add_argument(
        "--device",
        type=one_of("auto", "cpu", "cuda", "mps"),
        default="auto",
        metavar="auto|cpu|cuda|mps",
        help=f"{of}auto: a GPU if there is one, else the CPU (default: auto)",
    )


def add_best(parser: argparse.ArgumentParser) -> None:
    """Add the ``--best`` option of tools that read a run's checkpoint."""
    best = "use the checkpoint with the lowest validation loss of a run directory, not its newest"
    parser.add_argument("--best", action="store_true", help=best)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the ``--set`` option of tools that read a run's config; ``args.overrides`` is a list."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a setting, such as train.lr=1e-3 (repeatable)",
    )


def _tell_torchrun(message: str) -> None:
    """Have the traceback with which torchrun ends a failed job close with our sentence."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        extra = {"timestamp": str(int(time.time())), "py_callstack": message}
        failure = {"message": message, "errorCode": EXIT_USER_ERROR, "extraInfo": extra}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": failure}), encoding="utf-8")
