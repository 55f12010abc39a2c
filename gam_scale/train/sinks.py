"""Where a run's figures and texts go: files, boards, the console and a log file per rank."""

import logging
import math
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gam_scale.config import RunConfig
from gam_scale.errors import printable
from gam_scale.files import append_regular
from gam_scale.run.evaluations import MEASURED
from gam_scale.run.metrics_file import JsonLines, Line
from gam_scale.run.records import LAYERS, SAMPLES, LayerRecord, Records, medians, read_records
from gam_scale.train.boards import Guarded, TensorBoard, Wandb

logger = logging.getLogger("gam_scale")


class Sink(Protocol):
    """Receives lines until it is closed."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """Hands all that is logged to the sinks; only the main rank has any.

    Args:
        run_dir: holds metrics.jsonl and logs/.
        total_steps: of the whole run, for the progress display.
        resume_step: the step of the checkpoint that training goes on from; lines past it, which a
            killed run wrote, are dropped. 0: the run starts over and so does the file.
        layers_step: the same for layers.jsonl, whose record of a step is written before the step's
            evaluation and line; None: ``resume_step``.
    """

    def __init__(
        self,
        run_dir: str | Path,
        config: RunConfig,
        is_main: bool,
        total_steps: int,
        resume_step: int = 0,
        layers_step: int | None = None,
    ) -> None:
        self._sinks: list[Sink] = []
        self._boards: list[Guarded] = []
        self._records: dict[str, Records] = {}
        self._lines: JsonLines | None = None
        if not is_main:
            return
        run_dir = Path(run_dir)
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(run_dir / "metrics.jsonl", resume_step)
        self._sinks.append(self._lines)
        layers_step = resume_step if layers_step is None else layers_step
        for name, last in ((SAMPLES, resume_step), (LAYERS, layers_step)):
            self._records[name] = Records(run_dir / name, last)
        if config.log.tensorboard:
            make = partial(TensorBoard, logs / "tensorboard", resume_step)
            self._boards.append(Guarded("TensorBoard", make))
        if config.log.wandb != "off":
            self._boards.append(Guarded("wandb", partial(Wandb, run_dir, config)))
        if layers_step > resume_step:  # boards have dropped what they had past resume_step
            self._draw(run_dir, resume_step)
        self._sinks += [*self._boards, ConsoleLines(total_steps, resume_step)]

    def log(self, line: Line) -> None:
        """Write one line of plain numbers, whose ``step`` must be past the last line's."""
        for sink in self._sinks:
            sink.write(line)

    def sync(self) -> None:
        """Wait until the disk has all lines, which a checkpoint is about to count as logged."""
        if self._lines is not None:
            self._lines.sync()

    def layers(self, step: int, layers: Sequence[LayerRecord]) -> None:
        """Keep the statistics of all layers after a step, and draw their medians."""
        if LAYERS in self._records:
            self._records[LAYERS].write({"step": step, "layers": list(layers)})
        for board in self._boards:
            board.scalars(step, medians(layers))

    def _draw(self, run_dir: Path, after: int) -> None:
        """Draw the medians of the records of layers.jsonl past step ``after``."""
        for record in read_records(run_dir / LAYERS):
            if record["step"] > after:
                for board in self._boards:
                    board.scalars(record["step"], medians(record["layers"]))

    def samples(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        """Keep and show the texts that the model writes after a step: (prompt, continuation)."""
        for prompt, text in texts if SAMPLES in self._records else ():
            self._records[SAMPLES].write({"step": step, "prompt": prompt, "text": text})
            said = printable(" ".join((prompt + text).split()))  # a model may write any bytes
            logger.info("step %d, a sample: %s", step, said, extra={"on_bar": True})
        for board in self._boards:
            board.texts(step, texts)

    def close(self) -> None:
        """Flush and release everything; nothing can be logged afterwards."""
        while self._sinks:
            self._sinks.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ConsoleLines:
    """Logs each line of metrics; on a terminal, shows a progress bar and only the evaluations."""

    def __init__(self, total_steps: int, resume_step: int) -> None:
        self._total, self._first, self._start = total_steps, 0, math.nan
        console = Console(stderr=True)
        self._progress: Progress | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            bar = BarColumn(bar_width=None)
            columns = (TextColumn("step {task.completed}/{task.total}"), bar, "{task.description}")
            self._progress = Progress(*columns, console=console, expand=True, auto_refresh=False)
            self._task = self._progress.add_task("", total=total_steps, completed=resume_step)
            self._progress.start()

    def write(self, line: Line) -> None:
        step = line["step"]
        # A record "on_bar" goes to the log file only; see setup_logging.
        on_bar = self._progress is not None and not any(map(_is_measured, line))
        eta = self._eta(step)
        logger.info("%s", format_line(line, self._total) + eta, extra={"on_bar": on_bar})
        if self._progress is not None:
            text = format_line(line, self._total, brief=True) + eta
            self._progress.update(self._task, completed=step, description=text, refresh=True)

    def _eta(self, step: int) -> str:
        """Return the time left at the rate since the first line, which has the slow first step."""
        if math.isnan(self._start):
            self._first, self._start = step, time.monotonic()
            return ""
        seconds = (time.monotonic() - self._start) / (step - self._first)
        return f"  eta {timedelta(seconds=round(seconds * (self._total - step)))}"

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def format_line(line: Line, total_steps: int, brief: bool = False) -> str:
    """Return ``step 120/500  loss 5.123  ppl 167.9 ...``; ``brief`` fits beside a progress bar."""
    parts = [
        ("loss {:.3f}", line.get("loss")),
        ("ppl {:,.1f}", line.get("perplexity")),
        ("lr {:.1e}", line.get("lr")),
        ("{} tok/s", _thousands(line.get("tokens_per_s"))),
        ("mfu {:.0%}", line.get("mfu")),
    ]
    if not brief:
        parts.insert(3, ("gnorm {:.2f}", line.get("grad_norm")))
        memory = line.get("memory_bytes")
        parts += [
            ("mem {:.1f} GB", None if memory is None else memory / 1e9),
            ("retries {}", line.get("alloc_retries") or None),
            ("wait {:.0%}", line.get("data_wait")),
            ("skipped {}", line.get("skipped_steps") or None),
            ("val loss {:.3f}", line.get("val_loss")),
            ("val ppl {:,.1f}", line.get("val_perplexity")),
        ]
        for key in filter(_is_measured, line):
            kind, _, name = key.replace("{", "{{").replace("}", "}}").partition("/")
            if kind == "val_loss" and name:
                parts.append((f"val loss of {name} {{:.3f}}", line[key]))
            elif kind == "task" and name.endswith("/accuracy"):
                parts.append((f"{name.removesuffix('/accuracy')} {{:.3f}}", line[key]))
        parts.insert(0, (f"step {line['step']}/{total_steps}", 0))
    return "  ".join(text.format(value) for text, value in parts if value is not None)


def _is_measured(key: str) -> bool:
    """Whether a line's key comes from an evaluation or a task."""
    return key.startswith(MEASURED)


def _thousands(value: float | None) -> str | None:
    if value is None:
        return None
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


class _ConsoleHandler(logging.Handler):
    """Prints to the current sys.stderr, which a progress bar replaces to stay below the text."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "on_bar", False):
            print(self.format(record), file=sys.stderr, flush=True)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def setup_logging(run_dir: str | Path, rank: int) -> logging.Logger:
    """Set up the logger "gam_scale": logs/rank{rank}.log on every rank, the console on rank 0."""
    logs = Path(run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    append_regular(logs / f"rank{rank}.log").close()  # refuses a pipe, on which FileHandler hangs
    file = logging.FileHandler(logs / f"rank{rank}.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    if rank == 0:
        console = _ConsoleHandler()
        console.setFormatter(_ConsoleFormatter())
        logger.addHandler(console)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a root handler, such as a library installs, would print twice
    return logger
