"""Progress of long passes over text: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts bytes of text and shows the count on stderr.

    Attributes:
        redraw: called with the bytes read so far to update a bar; None: lines are printed instead.
    """

    def __init__(self, what: str, total: int | None):
        self.what, self.total, self.done = what, total, 0
        self.started = self.shown = time.monotonic()
        self.redraw: Callable[[int], None] | None = None

    def advance(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.redraw is not None:
            self.redraw(self.done)
        elif time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = time.monotonic()
            self.show()

    def show(self) -> None:
        seconds = time.monotonic() - self.started
        share = f" ({min(1.0, self.done / self.total):.0%})" if self.total else ""
        rate = self.done / 1e6 / max(seconds, 1e-9)
        print(
            f"{self.what}: {self.done / 1e6:,.1f} MB{share} in {seconds:,.1f} s, {rate:,.1f} MB/s",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Progress]:
    """Show the progress of ``what``, for which ``total`` bytes are expected (None: unknown).

    A last line stays on the screen, so that a log records the speed.
    """
    counter = Progress(what, total)
    if sys.stderr.isatty():
        with _bar(counter):
            yield counter
    else:
        yield counter
    counter.show()


@contextmanager
def _bar(counter: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn(counter.what), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=counter.total)
        counter.redraw = lambda done: bar.update(task, completed=done)
        yield
