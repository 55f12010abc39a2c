"""report.html: one self-contained page on a run, for a browser, a phone or a printer."""

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from gam_scale.charts import chart, column, scientific
from gam_scale.config import RunConfig
from gam_scale.files import write_bytes
from gam_scale.model.lm import LanguageModel, outline, stack_name
from gam_scale.model.memory.static import StaticMemory
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.run.goodput import goodput
from gam_scale.run.metrics_file import Line, read_metrics
from gam_scale.strict import from_dict, read_json, shown

STYLE = """
:root { color-scheme: light; --paper: #fff; --ink: #1c1f24; --quiet: #646b76; --rule: #e2e5e9;
  --train: #2f6db5; --valid: #c4561c; }
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --paper: #15181c; --ink: #e3e5e8; --quiet: #9299a4; --rule: #2d3239;
    --train: #78aeea; --valid: #ee9a62; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 3rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; -webkit-text-size-adjust: 100%; }
h1 { font-size: 1.75rem; line-height: 1.2; font-weight: 650; margin: 0 0 .4rem;
  overflow-wrap: anywhere; letter-spacing: -.01em; }
h2 { font-size: 1rem; font-weight: 650; margin: 0 0 .5rem; }
p { margin: 0; max-width: 44rem; }
.quiet, figcaption span { color: var(--quiet); font-size: .875rem; }
section, figure { margin: 2.75rem 0 0; break-inside: avoid; }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 1.25rem;
  margin: 2rem 0 0; border-top: 1px solid var(--rule); padding-top: 1.25rem; }
.key div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.key dt { color: var(--quiet); font-size: .875rem; }
.key dd { margin: 0; font-size: 1.6rem; line-height: 1.25; font-weight: 600; }
.key, table { font-variant-numeric: tabular-nums; }
.two, .three { display: grid; gap: 0 2.5rem; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.two { grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
figcaption { line-height: 1.4; margin-bottom: .6rem; }
figcaption b { font-weight: 650; display: block; }
figcaption .line { white-space: nowrap; margin-right: .8em; }
.line::before { content: ""; display: inline-block; width: 1.1em; height: 3px; border-radius: 2px;
  margin-right: .4em; vertical-align: middle; background: var(--train); }
.line.valid::before { background: var(--valid); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
.loss-narrow { display: none; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th, td { text-align: left; vertical-align: baseline; padding: .35rem 0; font-weight: 400;
  border-top: 1px solid var(--rule); }
th { color: var(--quiet); padding-right: 1rem; }
td { text-align: right; overflow-wrap: break-word; }
blockquote { margin: 0; padding-left: 1.1rem; border-left: 3px solid var(--rule); max-width: 44rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font: 1.0625rem/1.6 Georgia, serif; }
summary { cursor: pointer; font-weight: 650; }
pre { font: .8125rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.note { margin-top: .9rem; }
@media screen and (max-width: 48rem) {
  body { padding: 1.75rem 1.1rem 3rem; } section, figure { margin-top: 2.25rem; }
  .key { grid-template-columns: 1fr 1fr; } .three { grid-template-columns: 1fr; }
  svg { max-width: 28rem; } .loss { display: none; } .loss-narrow { display: block; } }
@media print { body { padding: 0; font-size: .875rem; } details { display: none; }
  section, figure { margin-top: 1.75rem; } .two, .three { column-gap: 1.5rem; } }
"""


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` of a run from its config.json, metrics.jsonl and summary.json.

    Everything is inside the one file; plots are SVG in the page's colours. A run that goes on, or
    was killed, has a page too: what is not known yet is left out.

    Raises:
        UserError: there is no readable config.json.
    """
    run_dir = Path(run_dir)
    config = read_json(run_dir / "config.json")
    model = _model(config)
    lines = read_metrics(run_dir / "metrics.jsonl")
    finished = (run_dir / "summary.json").exists()
    summary = _from_lines(lines)
    summary |= time_spent.figures() if (time_spent := goodput(RunDir(run_dir))) else {}
    summary |= read_summary(run_dir / "summary.json") if finished else {}
    name = escape(run_dir.resolve().name)
    body = [
        f"<header><h1>{name}</h1><p>{escape(_in_words(model, summary))}</p></header>",
        "" if finished else f'<p class="quiet">{escape(_progress(config, lines))}</p>',
        _key_figures(summary),
        _not_validated(summary),
        _continued(summary.get("continued") or {}),
        _charts(lines, summary),
        _sample(str(summary.get("sample") or "").strip()),
        _tables(config, model, summary),
        "<section><details><summary>Every setting</summary>"
        f"<pre>{escape(json.dumps(config, indent=2))}</pre></details></section>",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )
    path = run_dir / "report.html"
    write_bytes(path, page.encode())
    return path


def _from_lines(lines: list[Line]) -> dict[str, Any]:
    """What the metrics alone tell; a finished run's summary has the last word."""
    speed, losses = column(lines, "tokens_per_s"), column(lines, "loss")
    last = ("val_loss", "val_perplexity", "val_bits_per_byte", "tokens")
    known = {key: column(lines, key)[-1:] for key in last}
    known |= {"first_loss": losses[:1], "last_loss": losses[-1:]}
    known["tokens_per_s"] = [median(speed)] if speed else []
    # The clock starts anew in every process that resumes the run.
    clock = column(lines, "seconds")
    ends = [a for a, b in zip(clock, [*clock[1:], 0.0], strict=False) if b < a]
    known["seconds"] = [sum(ends)] if ends else []
    return {key: values[0] for key, values in known.items() if values}


def _model(config: dict[str, Any]) -> LanguageModel:
    """What the run trains, without weights: whatever is said of it is asked of it."""
    model = from_dict(RunConfig, config).model
    return outline(replace(model, vocab_size=model.vocab_size or 1))


def _in_words(model: LanguageModel, summary: dict[str, Any]) -> str:
    kinds, width = model.config.layer_kinds(), model.config.d_model
    words = [stack_name(kinds)]
    if "parameters" in summary:
        words.append(f" of {_large(summary['parameters'])} parameters")
    words.append(f", {len(kinds)} layers of width {width}")
    if "tokens" in summary:
        words.append(f"; trained on {_large(summary['tokens'])} tokens")
    if "seconds" in summary:
        words.append(f" in {_duration(summary['seconds'])}")
    return "".join(words) + "."


def _progress(config: dict[str, Any], lines: list[Line]) -> str:
    if not lines:
        return "This run is not finished; nothing has been logged yet."
    total = config.get("train", {}).get("steps")
    of = f" of {total:,}" if total else ""
    return f"This run is not finished: this page shows it up to step {lines[-1]['step']:,}{of}."


def _key_figures(summary: dict[str, Any]) -> str:
    figures = [
        ("validation perplexity", "val_perplexity", "{:,.2f}"),
        ("validation loss, nats per token", "val_loss", "{:.3f}"),
        ("validation bits per byte", "val_bits_per_byte", "{:.3f}"),
        ("tokens per second", "tokens_per_s", "{:,.0f}"),
    ]
    items = "".join(
        f"<div><dt>{label}</dt><dd>{form.format(summary[key])}</dd></div>"
        for label, key, form in figures
        if summary.get(key) is not None
    )
    return f'<dl class="key">{items}</dl>' if items else ""


def _continued(origin: dict[str, Any]) -> str:
    """What a run took over from another, and what it does otherwise."""
    if not origin:
        return ""
    words = f"Continues {origin['run']} with its {', '.join(origin['kept'])}; "
    changed = [f"{k} {shown(old)} → {shown(new)}" for k, (old, new) in origin["changed"].items()]
    words += "changed: " + ", ".join(changed) if changed else "every setting is the same"
    return f'<p class="quiet note">{escape(words)}.</p>'


def _not_validated(summary: dict[str, Any]) -> str:
    words = "Nothing was validated: no data set of this run has a validation split."
    return f'<p class="quiet note">{words}</p>' if summary.get("validated") == [] else ""


def _tables(config: dict[str, Any], model: LanguageModel, summary: dict[str, Any]) -> str:
    """What the headline leaves out, in two tables side by side."""

    def known(key: str, form: Callable[[Any], str]) -> str:
        value = summary.get(key)
        return "" if value is None else form(value)

    training = [
        ("Training loss at the start", known("first_loss", "{:.4f}".format)),
        ("Training loss at the end", known("last_loss", "{:.4f}".format)),
        ("Tokens trained on", known("tokens", "{:,.0f}".format)),
        ("Time, evaluations included", known("seconds", _duration)),
        ("Time, all starts included", known("wall_seconds", _duration)),
        ("Goodput: steps that count, of that time", known("goodput", "{:.0%}".format)),
        ("Starts", known("starts", str)),
        ("Time to resume", known("resume_seconds", lambda v: ", ".join(map(_duration, v)))),
        ("Steps trained again", known("steps_again", lambda v: f"{v:,}" if v else "")),
        ("Compute per token", known("flops_per_token", lambda v: f"{_large(v)}FLOP")),
        ("Share of the device’s peak (MFU)", known("mfu", "{:.0%}".format)),
        ("Peak memory of rank 0", known("peak_memory_bytes", lambda v: f"{v / 1e9:.2f} GB")),
        ("Memory that rank 0 reserved", known("memory_reserved", lambda v: f"{v / 1e9:.2f} GB")),
        ("Times its allocator made room", known("alloc_retries", lambda v: f"{v:,}" if v else "")),
        ("Times it found none", known("ooms", lambda v: f"{v:,}" if v else "")),
        ("Peak memory of any rank", known("max_memory_bytes", lambda v: f"{v / 1e9:.2f} GB")),
        ("Peak memory of a host, in use", known("max_host_memory", "{:.0%}".format)),
    ]
    setup = [
        ("Parameters", known("parameters", "{:,}".format)),
        ("Tokens of context", str(config.get("data", {}).get("seq_len", ""))),
        ("Tokens that reach a prediction", str(model.reach or "")),
        ("Engine", known("engine", str)),
        ("Device", known("device", str)),
        ("Ranks", known("ranks", str)),
        ("Compiled blocks", known("compiled", lambda v: {True: "yes", False: "no"}.get(v, str(v)))),
        ("Code version", known("code_version", str)),
    ]
    tables = "".join(
        _table(title, rows) for title, rows in (("Training", training), ("Setup", setup))
    )
    notes = _why_no_further(model)
    if (summary.get("mfu") or 0) > 1:
        notes.append("An MFU above 100% means that the device was busy when its peak was measured.")
    note = f'<p class="quiet note">{" ".join(notes)}</p>' if notes else ""
    return f'<div class="two">{tables}</div>{note}'


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    row = "<tr><th scope=row>{}</th><td>{}</td></tr>"
    cells = "".join(row.format(label, escape(value)) for label, value in rows if value)
    return f"<section><h2>{title}</h2><table>{cells}</table></section>" if cells else ""


def _why_no_further(model: LanguageModel) -> list[str]:
    """Why no more than ``model.reach`` tokens reach a prediction, if that is so."""
    if model.reach is None:
        return []
    words = "Only the convolutions mix tokens, so nothing further back reaches a prediction."
    if model.reach == 1:
        words = "Nothing mixes tokens, so no other token reaches a prediction."
    if any(isinstance(module, StaticMemory) for module in model.modules()):
        words = (
            "The memory of a GAM block is a fixed bank, which maps each token by itself. " + words
        )
    return [words]


def _sample(text: str) -> str:
    section = "<section><h2>What the model writes</h2><blockquote>{}</blockquote></section>"
    return section.format(escape(text)) if text else ""


def _large(value: float) -> str:
    for scale, unit in ((1e12, "\u00a0T"), (1e9, "\u00a0G"), (1e6, "\u00a0M"), (1e3, "\u00a0k")):
        if value >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f}\u00a0s"
    return f"{seconds / 60:.0f}\u00a0min" if seconds < 5400 else f"{seconds / 3600:,.1f}\u00a0h"


def _charts(lines: list[Line], summary: dict[str, Any]) -> str:
    if not lines:
        return ""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return '<p class="quiet">Plots of the run need matplotlib, which is not installed.</p>'
    loss = "nats per token; lower is better"
    if lost := len(lines) - len(column(lines, "loss")):
        loss += f"; broken where it was not a finite number ({lost} of {len(lines)} lines)"
    keys = '<span class="line">training</span> '
    if column(lines, "val_loss"):
        keys += '<span class="line valid">validation</span>'
    both = ("loss", "val_loss")
    svgs = chart(lines, both, (912, 340), name="loss")
    svgs += chart(lines, both, (350, 260), name="loss-narrow")
    small = (310, 205)
    rate = chart(lines, ("lr",), small, name="lr", form=scientific, from_zero=True)
    speed = chart(lines, ("tokens_per_s",), small, name="speed", form=_large, from_zero=True)
    norm = chart(lines, ("grad_norm",), small, name="norm", from_zero=True, may_log=True)
    mfu = f"; MFU {summary['mfu']:.0%}" if summary.get("mfu") else ""
    return (
        _figure("Loss", f"{loss}&emsp;{keys}", svgs)
        + '<div class="three">'
        + _figure("Learning rate", "per optimizer step", rate)
        + _figure("Throughput", f"tokens per second{mfu}", speed)
        + _figure("Gradient norm", "before clipping", norm)
        + "</div>"
    )


def _figure(title: str, caption: str, svg: str) -> str:
    svg = svg or '<p class="quiet">No values were logged.</p>'
    return f"<figure><figcaption><b>{title}</b><span>{caption}</span></figcaption>{svg}</figure>"
