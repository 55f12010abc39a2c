"""TensorBoard and wandb, which draw a run's figures if they are installed."""

import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from gam_scale.config import RunConfig
from gam_scale.files import read_regular, write_bytes
from gam_scale.run.metrics_file import Line, is_known_and_finite, read_metrics
from gam_scale.run.records import LAYERS, SAMPLES, medians, read_records
from gam_scale.strict import to_dict

logger = logging.getLogger("gam_scale")


class Board(Protocol):
    """Receives lines, other values and texts of samples, in the order of their steps."""

    def write(self, line: Line) -> None: ...

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None: ...

    def close(self) -> None: ...


class TurnedOff(Exception):
    """The user's environment turns a board off, for the reason in the message."""


class Guarded:
    """Wraps a board that must never stop a run: a missing package or an exception turns it off."""

    def __init__(self, name: str, make: Callable[[], Board]) -> None:
        self._name = name
        self._board: Board | None = None
        self._board = self._guard(make)

    def write(self, line: Line) -> None:
        if board := self._board:
            self._guard(lambda: board.write(line))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        if board := self._board:
            self._guard(lambda: board.scalars(step, values))

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        if board := self._board:
            self._guard(lambda: board.texts(step, texts))

    def close(self) -> None:
        if board := self._board:
            self._guard(board.close)

    def _guard(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (ImportError, TurnedOff) as error:
            logger.info("%s off: %s", self._name, error)
        except Exception as error:  # whatever a third party's service may raise
            logger.warning("%s off: %s", self._name, first_line(error))
        self._board = None
        return None


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tags(line: Line) -> dict[str, float]:
    """Return ``{"train/loss": .., "val/loss": ..}``, tags that boards group by prefix."""
    names = {k: f"val/{k[4:]}" if k.startswith("val_") else f"train/{k}" for k in line}
    names |= {k: k for k in line if k.startswith("task/")}
    return {
        names[k]: v for k, v in line.items() if k not in ("step", "time") and is_known_and_finite(v)
    }


class TensorBoard:
    """Writes event files; TensorBoard hides what a killed run wrote past ``resume_step``.

    Each line is flushed at once, since a line lost in a kill would be missing for good.
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

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        for i, (prompt, text) in enumerate(texts, 1):
            tag = f"sample/{i}" if len(texts) > 1 else "sample"
            self._writer.add_text(tag, prompt + text, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Logs to wandb online if wandb has a key that works, else to a folder for ``wandb sync``.

    With ``log.wandb auto``, WANDB_MODE too may keep it offline or turn it off.

    wandb's step is the training step. A resumed run first hands over the records in its directory
    that wandb lacks, so that wandb has each step once, even after a kill that lost or repeated
    steps. Offline, the new folder holds all steps and replaces earlier folders; online, what was
    uploaded stays.
    """

    def __init__(self, run_dir: Path, config: RunConfig) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own crash reports
        try:
            import wandb
        except ImportError:
            raise ImportError("the wandb package is not installed") from None
        log = config.log
        online = log.wandb == "auto" and _may_be_online(wandb)
        run_id = _wandb_id(run_dir)
        init = partial(
            wandb.init,
            entity=log.wandb_entity or None,  # None: as in wandb's own settings
            project=log.wandb_project,
            group=log.wandb_group or None,
            name=log.wandb_name or run_dir.resolve().name,
            notes=log.wandb_notes or None,
            tags=log.wandb_tags or None,
            id=run_id,
            dir=str(run_dir / "logs"),
            config=to_dict(config),
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=15, finish_timeout=60, disable_git=True
            ),
        )
        _remove_earlier(run_dir / "logs" / "wandb", run_id)
        run = _online(wandb, init) if online else None
        if run is None:
            run = init(mode="offline")
            folder = Path(run.dir).parent
            logger.info("wandb logs offline to %s; `wandb sync %s` uploads it", folder, folder)
        self._run = run
        self._run.define_metric("*", step_metric="step")
        self._next_step = self._run.step
        for _, hand_over in sorted(self._kept(run_dir), key=lambda kept: kept[0]):
            hand_over()

    def write(self, line: Line) -> None:
        step = line["step"]
        if step >= self._next_step:
            self._run.log({"step": step, **_tags(line)}, step=step, commit=True)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._add(step, values)

    def texts(self, step: int, texts: Sequence[tuple[str, str]]) -> None:
        from wandb import Table

        rows = [[step, prompt, text] for prompt, text in texts]
        self._add(step, {"samples": Table(columns=["step", "prompt", "text"], data=rows)})

    def _add(self, step: int, values: dict[str, Any]) -> None:
        """Add values to the row of this step, which the step's line or the next step completes."""
        if values and step >= self._next_step:
            self._run.log({"step": step, **values}, step=step, commit=False)

    def _kept(self, run_dir: Path) -> Iterator[tuple[int, Callable[[], None]]]:
        """Yield each record's step and a call that logs it; a step's line comes after the rest."""
        for step, of_it in groupby(read_records(run_dir / SAMPLES), key=lambda each: each["step"]):
            texts = [(record["prompt"], record["text"]) for record in of_it]
            yield step, partial(self.texts, step, texts)
        for record in read_records(run_dir / LAYERS):
            yield record["step"], partial(self.scalars, record["step"], medians(record["layers"]))
        for line in read_metrics(run_dir / "metrics.jsonl"):
            yield line["step"], partial(self.write, line)

    def close(self) -> None:
        self._run.finish()


def _remove_earlier(folder: Path, run_id: str) -> None:
    """Remove the offline folders of earlier starts, whose records this start logs again."""
    if not folder.is_dir():
        return
    age = time.time() - folder.stat().st_mtime
    for earlier in folder.glob(f"offline-run-*-{run_id}"):
        shutil.rmtree(earlier, ignore_errors=True)
    # wandb names folders by the second, and its service may still write to this second's folder.
    time.sleep(min(1.1, max(0.0, 1.1 - age)))


def _may_be_online(wandb: ModuleType) -> bool:
    """Return whether neither WANDB_MODE nor the lack of a key keeps wandb offline.

    Raises:
        TurnedOff: WANDB_MODE is disabled.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        raise TurnedOff("WANDB_MODE is disabled")
    if mode in ("offline", "dryrun"):
        return False
    try:
        # It looks where wandb does: WANDB_API_KEY, its settings files, then ~/.netrc.
        return wandb.login(prompt=False, verify=False)
    except Exception as error:  # a key of another form, ...
        logger.warning("wandb logs offline: %s", first_line(error))
        return False


def _online(wandb: ModuleType, init: Callable[..., Any]) -> Any:
    try:
        return init(mode="online", resume="allow")
    except Exception as error:  # no network, a wrong key, ...
        logger.warning("wandb logs offline: %s", first_line(error))
        wandb.teardown()  # until then wandb's service holds the run's id
        return None


def _wandb_id(run_dir: Path) -> str:
    """Return the id that makes a resumed run the same wandb run, kept in the run directory."""
    path = run_dir / "logs" / "wandb_id"
    if not path.exists():
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", run_dir.resolve().name)[:40]
        write_bytes(path, f"{name}-{secrets.token_hex(4)}\n".encode())
    return read_regular(path).decode(errors="replace").strip()
