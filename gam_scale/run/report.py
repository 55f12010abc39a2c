"""report.html: one self-contained page about a run, for a browser, a phone or a printer."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path, PurePath
from statistics import median
from typing import Any

from gam_scale.config import RunConfig
from gam_scale.config.stages import stages_of
from gam_scale.files import write_bytes
from gam_scale.hyperparameters import Chosen
from gam_scale.model.lm import LanguageModel, outline, stack_name
from gam_scale.model.mixers.static import StaticMemory
from gam_scale.report.figure import Figure
from gam_scale.report.lines import Series, line_figure
from gam_scale.report.numbers import Form, duration, gigabytes, large, metric, scientific
from gam_scale.report.page import Beside, Folded, KeyFigures, Note, Page, Part, Quotes
from gam_scale.report.table import Table
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.run.goodput import clock_seconds, goodput, read_starts
from gam_scale.run.layer_figures import layer_figures
from gam_scale.run.metrics_file import Line, read_metrics
from gam_scale.run.records import LAYERS, SAMPLES, read_records, text_of
from gam_scale.strict import from_dict, read_json, shown

WIDE, NARROW, SMALL = (912, 340), (350, 260), (310, 205)
SAMPLES_SHOWN = 5


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` of a run from its config.json, metrics.jsonl and summary.json.

    Everything is inside the one file. A run that goes on, or was killed, gets a page too, without
    what is not known yet (tools/report.py).

    Raises:
        UserError: there is no readable config.json.
    """
    run_dir = Path(run_dir)
    config = read_json(run_dir / "config.json")
    model = _model(config)
    lines = read_metrics(run_dir / "metrics.jsonl")
    finished = (run_dir / "summary.json").exists()
    run = RunDir(run_dir)
    summary = _of_lines(lines)
    if seconds := clock_seconds(lines, read_starts(run.starts)):
        summary["seconds"] = seconds
    summary |= time_spent.figures() if (time_spent := goodput(run)) else {}
    summary |= read_summary(run_dir / "summary.json") if finished else {}
    parts: list[Part] = [] if finished else [_progress(config, lines)]
    parts += [*_key_figures(summary), *_remarks(config, summary)]
    parts += [*_figures(lines, summary), *_layers(run_dir)]
    parts += _samples([*_written(run_dir), ("", summary.get("sample"))])
    facts = [_training(summary), _setup(config, model, summary)]
    parts.append(Beside([table for table in facts if table.rows]))
    parts += [table for table in [_stages(config)] if table.rows]
    parts += [*_explanations(model, summary), Folded("Every setting", json.dumps(config, indent=2))]
    page = Page(run_dir.resolve().name, _in_words(model, summary), parts)
    path = run_dir / "report.html"
    write_bytes(path, page.html().encode())
    return path


def column(lines: Sequence[Line], key: str) -> list[float]:
    """Return the values of one key, without lines that lack it or have null."""
    return [line[key] for line in lines if line.get(key) is not None]


def by_step(lines: Sequence[Line], key: str, name: str = "", *, joined: bool = False) -> Series:
    """Return the values of one key over optimizer steps.

    Args:
        lines: the lines of metrics.jsonl.
        key: the key of the values.
        name: the curve's label in the figure.
        joined: draw the curve through lines that lack the key, as for a loss that is measured now
            and then; otherwise the curve breaks there.
    """
    if joined:
        lines = [line for line in lines if line.get(key) is not None]
    values = [line.get(key) for line in lines]
    y = [math.nan if value is None else value for value in values]
    return Series(name, [line["step"] for line in lines], y)


def _of_lines(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the figures that the metrics alone give; a finished run's summary overrides them."""
    speed, losses = column(lines, "tokens_per_s"), column(lines, "loss")
    last = ("val_loss", "val_perplexity", "val_bits_per_byte", "tokens", "skipped_steps")
    known = {key: column(lines, key)[-1:] for key in last}
    known |= {"first_loss": losses[:1], "last_loss": losses[-1:]}
    known["tokens_per_s"] = [median(speed)] if speed else []
    return {key: values[0] for key, values in known.items() if values}


def _model(config: dict[str, Any]) -> LanguageModel:
    """Return the run's model without weights, to be asked for the facts on the page."""
    model = from_dict(RunConfig, config).model
    return outline(replace(model, vocab_size=model.vocab_size or 1))


def _in_words(model: LanguageModel, summary: dict[str, Any]) -> str:
    layers, width = model.config.stack(), model.config.d_model
    words = [stack_name(layers)]
    if "parameters" in summary:
        words.append(f" of {large(summary['parameters'])} parameters")
    words.append(f", {len(layers)} layers of width {width}")
    if "tokens" in summary:
        words.append(f"; trained on {large(summary['tokens'])} tokens")
    if "seconds" in summary:
        words.append(f" in {duration(summary['seconds'])}")
    return "".join(words) + "."


def _progress(config: dict[str, Any], lines: Sequence[Line]) -> Note:
    if not lines:
        return Note("This run is not finished; nothing has been logged yet.")
    total = config.get("train", {}).get("steps")
    of = f" of {total:,}" if total else ""
    step = lines[-1]["step"]
    return Note(f"This run is not finished: this page shows it up to step {step:,}{of}.")


def _key_figures(summary: dict[str, Any]) -> list[Part]:
    names = [
        ("validation perplexity", "val_perplexity", "{:,.2f}"),
        ("validation loss, nats per token", "val_loss", "{:.3f}"),
        ("validation bits per byte", "val_bits_per_byte", "{:.3f}"),
        ("tokens per second", "tokens_per_s", "{:,.0f}"),
    ]
    figures = [
        (name, form.format(summary[key]), "")
        for name, key, form in names
        if summary.get(key) is not None
    ]
    return [KeyFigures(figures)] if figures else []


def _remarks(config: dict[str, Any], summary: dict[str, Any]) -> list[Part]:
    """Return notes on a decay on demand, validation, "auto" settings, a continued run."""
    remarks: list[Part] = []
    anneal = config.get("train", {}).get("anneal") or {"steps": 0}
    if anneal["steps"]:
        words = f"from step {anneal['from_step']:,} on, over {anneal['steps']:,} steps"
        remarks.append(Note(f"The learning rate came down on demand {words}."))
    if summary.get("validated") == [] and not any(key.startswith("val_loss/") for key in summary):
        remarks.append(
            Note("Nothing was validated: no data set of this run has a validation split.")
        )
    if summary.get("validated") and summary.get("val_loss") is None:
        remarks.append(
            Note(
                "The validation loss at the end is not known. It was no finite number, as after "
                "training that diverges, or its line was lost."
            )
        )
    if chosen := summary.get("chosen"):
        remarks.append(Note(f"{from_dict(Chosen, chosen)}."))
    if origin := summary.get("continued"):
        changed = [
            f"{k} {shown(old)} → {shown(new)}" for k, (old, new) in origin["changed"].items()
        ]
        words = "changed: " + ", ".join(changed) if changed else "every setting is the same"
        kept = ", ".join(origin["kept"])
        remarks.append(Note(f"Continues {origin['run']} with its {kept}; {words}."))
    return remarks


def _figures(lines: Sequence[Line], summary: dict[str, Any]) -> list[Part]:
    """Return the figures of losses and tasks, and the small figures side by side."""
    if not lines:
        return []
    if find_spec("matplotlib") is None:
        return [Note("Plots of the run need matplotlib, which is not installed.")]
    mfu = f"; MFU {summary['mfu']:.0%}" if summary.get("mfu") else ""
    rate, norm = by_step(lines, "lr"), by_step(lines, "grad_norm")
    small = [
        _small("lr", "Learning rate", "per optimizer step", replace(rate, smooth=False), _rate),
        _small(
            "speed", "Throughput", f"tokens per second{mfu}", by_step(lines, "tokens_per_s"), large
        ),
        _small("norm", "Gradient norm", "before clipping", norm, may_log=True),
    ]
    if column(lines, "noise_scale"):
        series = by_step(lines, "noise_scale", joined=True)
        series = replace(series, smooth=False)
        caption = "targets a step, of which twice as many would gain little"
        small.append(_small("noise", "Gradient noise scale", caption, series, large, may_log=True))
    return [_loss(lines), *_of_sets(lines), *_of_tasks(lines), Beside(small, "three")]


def _loss(lines: Sequence[Line]) -> Figure:
    caption = "nats per token; lower is better"
    if lost := len(lines) - len(column(lines, "loss")):
        caption += f"; broken where it was not a finite number ({lost} of {len(lines)} lines)"
    series = [by_step(lines, "loss", "training")]
    if column(lines, "val_loss"):
        validation = by_step(lines, "val_loss", "validation", joined=True)
        series.append(replace(validation, smooth=False))
    return line_figure("loss", "Loss", caption, series, WIDE, narrow_size=NARROW)


def _of_sets(lines: Sequence[Line]) -> list[Figure]:
    """Return a figure of the loss on each set that is validated on by itself."""
    names = {key: key.partition("/")[2] for key in _keys(lines) if key.startswith("val_loss/")}
    caption = "validation loss of each set, nats per token"
    return _joined("sets", "Loss by set", caption, lines, names)


def _of_tasks(lines: Sequence[Line]) -> list[Figure]:
    """Return a figure of the share of right answers of each task."""
    parts = {key: key.split("/", 2) for key in _keys(lines) if key.startswith("task/")}
    names = {
        key: f"{name}{figure.removeprefix('accuracy').replace('_', ' ')}"
        for key, (_, name, figure) in parts.items()
        if figure.startswith("accuracy")
    }
    return _joined("tasks", "Tasks", "share of right answers", lines, names, y_range=(0, 1.02))


def _keys(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(key for line in lines for key in line))


def _joined(
    file: str, title: str, caption: str, lines: Sequence[Line], names: dict[str, str], **axis: Any
) -> list[Figure]:
    """Return a figure of values measured now and then, a curve per key; none without keys."""
    found = [by_step(lines, key, name, joined=True) for key, name in names.items()]
    series = [replace(each, smooth=False) for each in found]
    if not series:
        return []
    return [line_figure(file, title, caption, series, WIDE, narrow_size=NARROW, **axis)]


def _small(
    name: str, title: str, caption: str, series: Series, form: Form = "{:g}".format, **axis: Any
) -> Figure:
    return line_figure(name, title, caption, [series], SMALL, form=form, from_zero=True, **axis)


def _rate(value: float) -> str:
    return "0" if value == 0 else scientific(value, 3)


def _layers(run_dir: Path) -> list[Part]:
    """Return figures of the layers' statistics, if these were recorded and can be drawn."""
    if find_spec("matplotlib") is None:
        return []
    figures = layer_figures(read_records(run_dir / LAYERS))
    wide = [figure for figure in figures if figure.size[0] >= WIDE[0]]
    beside = [figure for figure in figures if figure not in wide]
    return [*wide, Beside(beside)] if figures else []


def _written(run_dir: Path) -> list[tuple[str, str]]:
    """Return captions and texts of the run's samples from a few steps, the first to the last."""
    records = read_records(run_dir / SAMPLES)
    steps = sorted({record["step"] for record in records})
    few = {round(i * (len(steps) - 1) / (SAMPLES_SHOWN - 1)) for i in range(SAMPLES_SHOWN)}
    shown = {steps[i] for i in few if steps}
    return [(f"after step {r['step']:,}", text_of(r)) for r in records if r["step"] in shown]


def _samples(texts: Sequence[tuple[str, Any]]) -> list[Part]:
    """Return a part that quotes texts, given with their captions, which may be empty."""
    passages = [(caption, str(text).strip()) for caption, text in texts if text]
    passages = [(caption, text) for caption, text in passages if text]
    return [Quotes("What the model writes", passages)] if passages else []


def _facts(
    title: str, summary: dict[str, Any], names: Sequence[tuple[str, str, Callable[[Any], str]]]
) -> Table:
    """Return a table of the summary's figures; ``names`` has (label, key, format) of each row."""
    rows = [[name, form(summary[key])] for name, key, form in names if summary.get(key) is not None]
    return Table(title, [], [row for row in rows if row[1]])


def _training(summary: dict[str, Any]) -> Table:
    def unless_none(count: int) -> str:
        return f"{count:,}" if count else ""

    names: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Training loss at the start", "first_loss", "{:.4f}".format),
        ("Training loss at the end", "last_loss", "{:.4f}".format),
        ("Tokens trained on", "tokens", "{:,.0f}".format),
        ("Steps skipped (no finite gradient)", "skipped_steps", unless_none),
        ("Time, evaluations included", "seconds", duration),
        ("Time, all starts included", "wall_seconds", duration),
        ("Goodput: steps that count, of that time", "goodput", "{:.0%}".format),
        ("Starts", "starts", str),
        ("Time to resume", "resume_seconds", lambda each: ", ".join(map(duration, each))),
        ("Steps trained again", "steps_again", unless_none),
        ("Compute per token", "flops_per_token", lambda flops: metric(flops, "FLOP")),
        ("Share of the device’s peak (MFU)", "mfu", "{:.0%}".format),
        ("Peak memory of rank 0", "peak_memory_bytes", gigabytes),
        ("Memory that rank 0 reserved", "memory_reserved", gigabytes),
        ("Times its allocator made room", "alloc_retries", unless_none),
        ("Times it found none", "ooms", unless_none),
        ("Peak memory of any rank", "max_memory_bytes", gigabytes),
        ("Peak memory of a host, in use", "max_host_memory", "{:.0%}".format),
    ]
    return _facts("Training", summary, names)


def _setup(config: dict[str, Any], model: LanguageModel, summary: dict[str, Any]) -> Table:
    known = {"context": config.get("data", {}).get("seq_len"), "reach": model.reach}
    names: list[tuple[str, str, Callable[[Any], str]]] = [
        ("Parameters", "parameters", "{:,}".format),
        ("Tokens of context", "context", str),
        ("Tokens that reach a prediction", "reach", str),
        ("Engine", "engine", str),
        ("Device", "device", str),
        ("Ranks", "ranks", str),
        ("Compiled blocks", "compiled", lambda value: {True: "yes", False: "no"}.get(value, value)),
        ("Code version", "code_version", str),
    ]
    return _facts("Setup", summary | known, names)


def _stages(config: dict[str, Any]) -> Table:
    """Return a table of the run's stages, empty for a run without ``train.stages``."""
    read: RunConfig = from_dict(RunConfig, config)
    names = [PurePath(entry.path).name for entry in read.data.sets]
    columns = ["", "Steps", "Sequences a step", "Tokens each", "Tokens"]
    mixed = len(names) > 1
    rows = []
    for number, stage in enumerate(stages_of(read) if read.train.stages else [], 1):
        counts = stage.steps, stage.global_batch_size, stage.seq_len
        row = [str(number), *(f"{n:,}" for n in counts), large(stage.tokens)]
        shares = [
            f"{n} {w / sum(stage.weights):.0%}"
            for n, w in zip(names, stage.weights, strict=True)
            if w
        ]
        rows.append([*row, *([", ".join(shares)] if mixed else [])])
    return Table("Stages", [*columns, *(["Text"] if mixed else [])], rows)


def _explanations(model: LanguageModel, summary: dict[str, Any]) -> list[Part]:
    """Say why only ``model.reach`` tokens reach a prediction, and what an MFU above 100% means."""
    words = []
    if model.reach is not None:
        if any(isinstance(module, StaticMemory) for module in model.modules()):
            words.append(
                "The memory of a GAM block is a fixed bank, which maps each token by itself."
            )
        mixing = " and ".join(sorted({block.mixes_by for block in model.blocks} - {""}))
        words.append(
            "Nothing mixes tokens, so no other token reaches a prediction."
            if model.reach == 1
            else f"Only {mixing} mix tokens, so nothing further back reaches a prediction."
        )
    if (summary.get("mfu") or 0) > 1:
        words.append("An MFU above 100% means that the device was busy when its peak was measured.")
    return [Note(" ".join(words))] if words else []
