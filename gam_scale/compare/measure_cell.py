"""A cell that takes one measurement of a trained model at one length, in a process of its own.

``python -m gam_scale.compare.measure_cell CONFIG...`` takes measurements one after another.
Finished ones are skipped; a killed one begins anew.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from gam_scale import cli
from gam_scale.checkpoint.load import Trained, load_trained
from gam_scale.compare.spec import MeasureSpec
from gam_scale.evaluate.by_position import loss_by_position, octaves
from gam_scale.evaluate.effective_context import (
    WINDOWS,
    contexts,
    effective_context,
    windows_of,
)
from gam_scale.evaluate.hidden import TOKENS_PER_PASS
from gam_scale.evaluate.key_values import KeyValues
from gam_scale.evaluate.needle import Needles
from gam_scale.evaluate.text import TextSource, batches, documents
from gam_scale.evaluate.token_loss import last_log_probs, token_losses
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.code_version import code_version
from gam_scale.experiment.kept import KeptCell, keep_row_with_config
from gam_scale.experiment.results import kept_row
from gam_scale.hardware.processor import find_device
from gam_scale.run.lock import RunLock
from gam_scale.strict import option, read_record, section, to_dict

What = Literal["positions", "needle", "pairs", "context"]


@dataclass
class MeasureRun:
    """The config file of a measurement."""

    folder: str = option("", "folder of the comparison")
    run: str = option("", "run directory to measure")
    model: str = option("", "name of the model")
    seed: int = option(0, "seed of its training")
    what: What = option("positions", "measurement to take")
    length: int = option(0, "tokens of context")
    settings: MeasureSpec = section(MeasureSpec, "the comparison's")


@dataclass(frozen=True, kw_only=True)
class MeasureCell(KeptCell):
    """One measurement of a finished run, on a GPU if there is one; ``config`` is the run's."""

    trainer: ClassVar[str] = "gam_scale.compare.measure_cell"

    measured: Cell
    model_name: str
    what: What
    length: int
    settings: MeasureSpec

    @property
    def name(self) -> str:
        """See :attr:`Cell.name`."""
        return f"{self.measured.name}-{self.what}-{self.length}"

    @property
    def run_dir(self) -> Path:
        """See :attr:`Cell.run_dir`; it holds a lock only."""
        return self.folder / "measured" / self.name

    @property
    def flops(self) -> float:
        """Not counted: a plan counts training only."""
        return 0.0

    def write_config(self) -> Path:
        """See :meth:`Cell.write_config`."""
        run = MeasureRun(
            str(self.folder.absolute()),
            str(self.measured.run_dir.absolute()),
            self.model_name,
            self.seed,
            self.what,
            self.length,
            self.settings,
        )
        return self.write_once(run)

    def harmless_changes(self, saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`KeptCell.harmless_changes`.

        They are the run's path, and settings of other measurements only.
        """
        before, settings = saved["settings"], now["settings"]
        same = all(before[key] == settings[key] for key in DECIDES[self.what])
        return {"run": now["run"], "settings": settings if same else before}


DECIDES: dict[str, tuple[str, ...]] = {
    "positions": ("max_tokens",),
    "needle": ("depths", "trials"),
    "pairs": ("pairs", "trials"),
    "context": (),
}
"""The settings on which each measurement depends."""


def measure_cells(measured: Cell, model_name: str, settings: MeasureSpec) -> list[MeasureCell]:
    """Return the cells of all measurements that ``settings`` asks for of a finished run."""
    wanted: list[tuple[What, int]] = [("positions", length) for length in settings.positions]
    wanted += [("needle", length) for length in settings.hidden]
    wanted += [("pairs", length) for length in settings.hidden if settings.pairs]
    wanted += [("context", settings.context)] if settings.context else []
    return [
        MeasureCell(
            seed=measured.seed,
            config=measured.config,
            folder=measured.folder,
            measured=measured,
            model_name=model_name,
            what=what,
            length=length,
            settings=settings,
        )
        for what, length in wanted
    ]


def measure(path: Path) -> None:
    """Take the measurement of a config file and keep its row, unless the row is there already."""
    asked: MeasureRun = read_record(MeasureRun, path)
    folder = Path(asked.folder)
    if kept_row(folder, path.stem) is not None:
        return
    with RunLock(folder / "measured" / path.stem):
        began, trained = time.perf_counter(), load_trained(asked.run, find_device("auto"))
        row: Row = {
            "model": asked.model,
            "seed": asked.seed,
            "what": asked.what,
            "length": asked.length,
            "trained_at": trained.config.data.seq_len,
            **MEASURES[asked.what](trained, asked),
        }
        row["seconds"] = round(time.perf_counter() - began, 1)
        decides = {key: to_dict(asked.settings)[key] for key in DECIDES[asked.what]}
        config = {key: row[key] for key in ("model", "seed", "what", "length")}
        row |= {"code_version": code_version()}
        keep_row_with_config(folder, path.stem, row, config | {"settings": decides})


def _positions(trained: Trained, asked: MeasureRun) -> Row:
    source = TextSource(max_tokens=asked.settings.max_tokens)
    rows = max(1, TOKENS_PER_PASS // asked.length)
    read = batches(trained, source, asked.length, rows)
    losses = partial(token_losses, trained.model)
    result = loss_by_position(losses, read, octaves(asked.length))
    bins = [
        [b.first, b.last, b.loss.mean, b.loss.low, b.loss.high, b.tokens]
        for b in result.bins
        if b.loss is not None
    ]
    tokens = sum(b[-1] for b in bins)
    loss = sum(b[2] * b[-1] for b in bins) / max(1, tokens)
    return {"loss": loss, "tokens": tokens, "sequences": result.sequences, "bins": bins}


def _needle(trained: Trained, asked: MeasureRun) -> Row:
    texts = documents(trained, TextSource(), asked.length)
    read, settings = _reader(trained), asked.settings
    lengths, depths = [asked.length], settings.depths
    result = Needles(trained.tokenizer, texts, lengths, depths, settings.trials).ask(read)
    ((_, accuracy),) = result.by_length
    return {
        "accuracy": accuracy.mean,
        "low": accuracy.low,
        "high": accuracy.high,
        "chance": result.chance,
        "right": np.sum([c.right for c in result.cells], 0).tolist(),  # of each trial, all depths
        "cells": [[c.depth, c.accuracy.mean, c.rank, c.gain.mean, c.trials] for c in result.cells],
    }


def _pairs(trained: Trained, asked: MeasureRun) -> Row:
    texts = documents(trained, TextSource(), asked.length)
    read, settings = _reader(trained), asked.settings
    lengths, pairs = [asked.length], settings.pairs
    result = KeyValues(trained.tokenizer, texts, lengths, pairs, settings.trials).ask(read)
    cells = [
        [c.pairs, c.accuracy.mean, c.accuracy.low, c.accuracy.high, c.copied.mean, c.trials]
        for c in result.cells
    ]
    return {"cells": cells}


def _context(trained: Trained, asked: MeasureRun) -> Row:
    length = asked.length
    windows = windows_of(documents(trained, TextSource(), length + 1), length, WINDOWS)
    losses = partial(token_losses, trained.model)
    result = effective_context(losses, windows, contexts(length))
    return {
        "context": result.context,
        "sure_context": result.sure_context,
        "cleared": [[c.context, c.rise.mean, c.rise.low, c.rise.high] for c in result.cleared],
    }


def _reader(trained: Trained) -> Callable[[Tensor], Tensor]:
    return partial(last_log_probs, trained.model)


MEASURES: dict[str, Callable[[Trained, MeasureRun], Row]] = {
    "positions": _positions,
    "needle": _needle,
    "pairs": _pairs,
    "context": _context,
}


def main() -> None:
    """Take the measurements of all config files on the command line."""
    for path in sys.argv[1:]:
        measure(Path(path))


if __name__ == "__main__":
    cli.run(main)
