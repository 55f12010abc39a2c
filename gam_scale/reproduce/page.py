"""The page of the reproduced tables: HTML, Markdown and CSVs from the results in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.experiment.results import kept_rows
from gam_scale.files import csv_of_dicts, write_bytes, write_json
from gam_scale.report.axes import finish, ticks_x
from gam_scale.report.figure import Figure
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large
from gam_scale.report.page import Page, Part, Sentences
from gam_scale.report.table import Table
from gam_scale.reproduce import blocks, words
from gam_scale.reproduce.spread import Results
from gam_scale.reproduce.tables import BLOCKS, TITLES, tables
from gam_scale.strict import read_json

TITLE = "The paper's tables, run again"
SETUP_FILE = "setup.json"


def claim(out: Path, scale: float, overrides: Sequence[str]) -> None:
    """Record in ``out`` the scale and overrides of all its figures, or check them if recorded.

    Raises:
        UserError: ``out`` has figures of another scale or other settings, or cannot be written.
    """
    path, now = out / SETUP_FILE, {"scale": scale, "set": list(overrides)}
    if not path.exists():
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, now)
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    for key, value in read_json(path).items():
        if now[key] != value:
            raise UserError(
                f"{out} has figures made with --{key} {value}, not {now[key]}; expected the same, "
                "or another --out"
            )


def write_page(out: Path, notes: Sequence[str] = ()) -> list[Path]:
    """Write ``out``/page: report.html, report.md, figures, runs.csv and blocks.csv.

    Args:
        out: the folder that the tool filled; without any result, no page is written.
        notes: sentences to end the limits with, such as what else the machine was doing.

    Returns:
        The files written; none if nothing is measured yet.
    """
    rows, timed = list(kept_rows(out).values()), blocks.measured(out)
    if not rows and not timed:
        return []
    setup, results = read_json(out / SETUP_FILE), Results(rows)
    parts: list[Part] = [
        Sentences("What the figures show", words.shows(results, timed)),
        Sentences("What they do not show", words.does_not_show(results, setup["scale"], notes)),
        Sentences("What the published set-up handicaps", words.HANDICAPS),
        *tables(results, timed),
        *(_figure(timed, *what) for what in _FIGURES if timed),
        _settings(rows, timed, setup),
    ]
    files = Page(TITLE, _subject(setup["scale"]), parts).files("png")
    if rows:
        files["runs.csv"] = csv_of_dicts(rows)
    if timed:
        files["blocks.csv"] = csv_of_dicts(timed)
    folder = out / "page"
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def _subject(scale: float) -> str:
    size = "at the paper's size" if scale == 1 else f"at scale {scale:g} (see Settings)"
    return f"Tables 1 to 3 of Gated Associative Memory (arXiv 2509.00605), {size}."


def _settings(
    rows: Sequence[dict[str, Any]], timed: Sequence[dict[str, Any]], setup: dict[str, Any]
) -> Table:
    versions = {row["code_version"] for row in (*rows, *timed)}
    settings = [["scale", f"{setup['scale']:g}"], ["code version", ", ".join(sorted(versions))]]
    if setup["scale"] < 1:
        settings.append(["rule", RULE])
    if rows:
        some = rows[0]
        settings += [
            ["width", str(some["width"])],
            ["sequences a step", str(some["batch"])],
            ["learning rates", ", ".join(f"{lr:g}" for lr in sorted({r["lr"] for r in rows}))],
            ["warm-up steps", str(some["warmup_steps"])],
            ["seeds", ", ".join(map(str, sorted({r["seed"] for r in rows})))],
            ["trained on", ", ".join(sorted({r["device"] for r in rows}))],
        ]
    for dataset in Results(rows).datasets():
        some = next(r for r in rows if r["dataset"] == dataset)
        settings.append(
            [
                TITLES[dataset],
                f"{large(some['epoch_tokens'])} training tokens; {some['steps']:,} steps, "
                f"{large(some['tokens'])} tokens a run",
            ]
        )
    if timed:
        settings.append(["blocks timed on", ", ".join(sorted({b["device"] for b in timed}))])
    if setup["set"]:
        settings.append(["--set", " ".join(setup["set"])])
    return Table("Settings", ["setting", "value"], settings, in_words=True)


RULE = (
    "width, slots, heads, sequences a step, optimizer steps and warm-up are the scale times the "
    "paper's; learning rates 3e-4 times 512 over the width, but the paper's for bare Mamba blocks, "
    "whose values overflow at larger ones; 6 layers, T 256 and the rest as published"
)

_FIGURES = (
    ("block-time", "Time of a block", "forward and backward against T", "ms", 1, "milliseconds"),
    ("block-memory", "Memory of a block", "the most held, against T", "bytes", blocks.MIB, "MB"),
)


def _figure(
    timed: Sequence[dict[str, Any]],
    name: str,
    title: str,
    caption: str,
    column: str,
    unit: float,
    y_label: str,
) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, kind in enumerate(blocks.KINDS):
            points = [b for b in timed if b["kind"] == kind and b[column] is not None]
            x, y = [b["T"] for b in points], [b[column] / unit for b in points]
            axes.plot(x, y, "o-", lw=2, ms=5, mew=0, color=palette.line(i))
        finish(axes, palette, narrow, "tokens", y_label, large, "{:,g}".format, log_y=True)
        ticks_x(axes, sorted({b["T"] for b in timed}))

    keys = tuple((i, BLOCKS[kind]) for i, kind in enumerate(blocks.KINDS))
    return Figure(name, title, caption, draw, keys)
