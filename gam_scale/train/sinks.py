"""Where metrics go: metrics.jsonl, TensorBoard, wandb, the console and a log file per rank."""

import logging
import math
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gam_scale.config import RunConfig
from gam_scale.files import append_regular, read_regular, write_bytes
from gam_scale.run.metrics_file import JsonLines, Line, is_finite, read_metrics
from gam_scale.strict import to_dict

logger = logging.getLogger("gam_scale")


class Sink(Protocol):
    """Takes lines until it is closed."""

    def write(self, line: Line) -> None: ...

    def close(self) -> None: ...


class MetricLog:
    """Hands every line to all sinks; on ranks other than the main one there are none.

    Args:
        run_dir: holds metrics.jsonl and logs/.
        total_steps: of the whole run, for the progress display.
        resume_step: the step of the checkpoint that training goes on from; lines past it, which a
            killed run wrote, are dropped. 0: the run starts over and so does the file.
    """

    def __init__(
        self,
        run_dir: str | Path,
        config: RunConfig,
        is_main: bool,
        total_steps: int,
        resume_step: int = 0,
    ) -> None:
        self._sinks: list[Sink] = []
        if not is_main:
            return
        run_dir = Path(run_dir)
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._sinks.append(JsonLines(run_dir / "metrics.jsonl", resume_step))
        if config.log.tensorboard:
            make = partial(TensorBoard, logs / "tensorboard", resume_step)
            self._sinks.append(Guarded("TensorBoard", make))
        if config.log.wandb != "off":
            self._sinks.append(Guarded("wandb", partial(Wandb, run_dir, config)))
        self._sinks.append(ConsoleLines(total_steps, resume_step))

    def log(self, line: Line) -> None:
        """Write one line; its values are plain numbers, its ``step`` is past that of the last."""
        for sink in self._sinks:
            sink.write(line)

    def close(self) -> None:
        """Flush and release everything; nothing can be logged afterwards."""
        while self._sinks:
            self._sinks.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Guarded:
    """A sink that must never stop a run: its first exception, or its absence, turns it off."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._sink = self._guard(make)

    def write(self, line: Line) -> None:
        if sink := self._sink:
            self._guard(lambda: sink.write(line))

    def close(self) -> None:
        if sink := self._sink:
            self._guard(sink.close)

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ImportError as error:
            logger.info("%s off: %s", self._name, error)
        except Exception as error:  # whatever a third party's service may raise
            logger.warning("%s off: %s", self._name, first_line(error))
        self._sink = None
        return None


def first_line(error: Exception) -> str:
    """What a third party's exception says, shortened to a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tags(line: Line) -> dict[str, float]:
    """``{"train/loss": .., "val/loss": ..}`` for the sinks that group by prefix."""
    names = {k: f"val/{k[4:]}" if k.startswith("val_") else f"train/{k}" for k in line}
    return {names[k]: v for k, v in line.items() if k not in ("step", "time") and is_finite(v)}


class TensorBoard:
    """Event files; what a killed run wrote past ``resume_step`` is hidden by TensorBoard.

    Each line is written at once: what a kill takes along would be missing for good.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("the tensorboard package is not installed") from None
        self._writer = SummaryWriter(str(folder), purge_step=resume_step + 1)

    def write(self, line: Line) -> None:
        for tag, value in _tags(line).items():
            self._writer.add_scalar(tag, value, line["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Online where WANDB_API_KEY is set and works, else a folder that ``wandb sync`` uploads.

    wandb's step is the training step. A resumed run first hands over what it kept in metrics.jsonl
    and wandb lacks, so that each step is there once, whatever a kill took along or did twice:
    offline the new folder holds all of them and takes the place of earlier ones; online, what was
    uploaded stands.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own crash reports
        try:
            import wandb
        except ImportError:
            raise ImportError("the wandb package is not installed") from None
        online = config.log.wandb == "auto" and bool(os.environ.get("WANDB_API_KEY"))
        run_id = _wandb_id(run_dir)
        init = partial(
            wandb.init,
            project=config.log.wandb_project,
            name=run_dir.resolve().name,
            id=run_id,
            dir=str(run_dir / "logs"),
            config=to_dict(config),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=15, finish_timeout=60, disable_git=True
            ),
        )
        _remove_earlier(run_dir / "logs" / "wandb", run_id)
        self._run = (online and _online(wandb, init)) or init(mode="offline")
        self._run.define_metric("*", step_metric="step")
        self._next_step = self._run.step
        for line in read_metrics(run_dir / "metrics.jsonl"):
            self.write(line)

    def write(self, line: Line) -> None:
        step = line["step"]
        if step >= self._next_step:
            self._run.log({"step": step, **_tags(line)}, step=step, commit=True)

    def close(self) -> None:
        self._run.finish()


def _remove_earlier(folder: Path, run_id: str) -> None:
    """Remove what earlier starts wrote offline, which this one writes whole."""
    if not folder.is_dir():
        return
    age = time.time() - folder.stat().st_mtime
    for earlier in folder.glob(f"offline-run-*-{run_id}"):
        shutil.rmtree(earlier, ignore_errors=True)
    # wandb names folders by the second, and its service may still write to one of this second.
    time.sleep(min(1.1, max(0.0, 1.1 - age)))


def _online(wandb: ModuleType, init: Callable[..., Any]) -> Any:
    try:
        return init(mode="online", resume="allow")
    except Exception as error:  # no network, a wrong key, ...
        logger.warning("wandb logs offline: %s", first_line(error))
        wandb.teardown()  # its service holds the run's id until then
        return None


def _wandb_id(run_dir: Path) -> str:
    """The id that makes a resumed run the same wandb run: made once, kept in the run directory."""
    path = run_dir / "logs" / "wandb_id"
    if not path.exists():
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name)[:40]
        write_bytes(path, f"{name}-{secrets.token_hex(4)}\n".encode())
    return read_regular(path).decode(errors="replace").strip()


class ConsoleLines:
    """One log line per line of metrics, or on a terminal a progress bar and the evaluations."""

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
        on_bar = self._progress is not None and "val_loss" not in line
        eta = self._eta(step)
        logger.info("%s", format_line(line, self._total) + eta, extra={"on_bar": on_bar})
        if self._progress is not None:
            text = format_line(line, self._total, brief=True) + eta
            self._progress.update(self._task, completed=step, description=text, refresh=True)

    def _eta(self, step: int) -> str:
        """Time left at the rate since the first line, which a start's first step slows down."""
        if math.isnan(self._start):
            self._first, self._start = step, time.monotonic()
            return ""
        seconds = (time.monotonic() - self._start) / (step - self._first)
        return f"  eta {timedelta(seconds=round(seconds * (self._total - step)))}"

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


def format_line(line: Line, total_steps: int, brief: bool = False) -> str:
    """``step 120/500  loss 5.123  ppl 167.9 ...``; ``brief`` fits beside a progress bar."""
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
        parts.insert(0, (f"step {line['step']}/{total_steps}", 0))
    return "  ".join(text.format(value) for text, value in parts if value is not None)


def _thousands(value: float | None) -> str | None:
    if value is None:
        return None
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


class _ConsoleHandler(logging.Handler):
    """Prints to what sys.stderr is at that time, so that a progress bar stays below the text."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "on_bar", False):
            print(self.format(record), file=sys.stderr, flush=True)


class _ConsoleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def setup_logging(run_dir: str | Path, rank: int) -> logging.Logger:
    """The logger "gam_scale": logs/rank{rank}.log for every rank, and the console for rank 0."""
    logs = Path(run_dir) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    append_regular(logs / f"rank{rank}.log").close()  # which opening it again would wait for
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
