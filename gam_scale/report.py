"""report.html: one self-contained page on a run, for a browser, a phone or a printer."""

import html
import io
import json
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.files import write_bytes
from gam_scale.strict import read_json

Line = dict[str, Any]
TEXT_COLOUR = "#010203"  # stands for the page's own text colour in the plots
TRAIN_COLOUR, VALID_COLOUR = "#3b82c4", "#d9782d"  # readable on light and on dark

CHARTS = [
    ("Loss (nats per token)", "loss", "val_loss"),
    ("Learning rate", "lr", None),
    ("Tokens per second", "tokens_per_s", None),
    ("Gradient norm before clipping", "grad_norm", None),
]

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
figure { margin: 1.5rem 0; } svg { width: 100%; height: auto; color: inherit; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td { padding: .2rem 1.5rem .2rem 0; border-bottom: 1px solid var(--line); }
td + td { text-align: right; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line);
      padding-left: 1rem; font-size: .85rem; }
@media print { details { display: none; } figure { break-inside: avoid; } }
"""


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` of a run from its config.json, metrics.jsonl and summary.json.

    Everything is inside the one file, plots as SVG that follows the page's colours. A summary that
    is missing, and lines without a number, are left out.
    """
    run_dir = Path(run_dir)
    config = read_json(run_dir / "config.json")
    metrics = run_dir / "metrics.jsonl"
    lines = [json.loads(row) for row in metrics.read_text().splitlines()]
    summary_file = run_dir / "summary.json"
    summary = read_json(summary_file) if summary_file.exists() else {}
    body = [f"<h1>{_escape(run_dir.resolve().name)}</h1>", _table(summary)]
    body += [_figure(lines, *chart) for chart in CHARTS]
    if sample := summary.get("sample"):
        body.append(f"<h2>A sample of what the model writes</h2><pre>{_escape(sample)}</pre>")
    settings = _escape(json.dumps(config, indent=2))
    body.append(f"<details><summary>Every setting</summary><pre>{settings}</pre></details>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_escape(run_dir.resolve().name)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    path = run_dir / "report.html"
    write_bytes(path, page.encode())
    return path


def _table(summary: dict[str, Any]) -> str:
    rows = [
        ("First loss", "first_loss", "{:.4f}"),
        ("Last loss", "last_loss", "{:.4f}"),
        ("Validation loss", "val_loss", "{:.4f}"),
        ("Validation perplexity", "val_perplexity", "{:,.2f}"),
        ("Validation bits per byte", "val_bits_per_byte", "{:.4f}"),
        ("Parameters", "parameters", "{:,}"),
        ("Tokens trained on", "tokens", "{:,}"),
        ("Tokens per second", "tokens_per_s", "{:,.0f}"),
        ("Model FLOPs over device peak", "mfu", "{:.1%}"),
        ("Peak memory of rank 0 (bytes)", "peak_memory_bytes", "{:,}"),
        ("Engine", "engine", "{}"),
        ("Device", "device", "{}"),
        ("Ranks", "ranks", "{}"),
        ("Blocks compiled", "compiled", "{}"),
        ("Code version", "code_version", "{}"),
    ]
    cells = [
        f"<tr><td>{label}</td><td>{_escape(form.format(summary[key]))}</td></tr>"
        for label, key, form in rows
        if summary.get(key) is not None
    ]
    return f"<table>{''.join(cells)}</table>" if cells else "<p>This run is not finished.</p>"


def _figure(lines: list[Line], title: str, key: str, valid_key: str | None) -> str:
    """One chart as an inline SVG, or nothing where no line has the number."""
    if not any(line.get(key) is not None for line in lines):
        return ""
    import matplotlib

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "gam-scale",  # the same data gives the same file
        "text.color": TEXT_COLOUR,
        "axes.labelcolor": TEXT_COLOUR,
        "axes.edgecolor": TEXT_COLOUR,
        "xtick.color": TEXT_COLOUR,
        "ytick.color": TEXT_COLOUR,
    }
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        for name, column, colour, mark in (
            ("training", key, TRAIN_COLOUR, "-"),
            ("validation", valid_key, VALID_COLOUR, "o-"),
        ):
            points = [(m["step"], m[column]) for m in lines if m.get(column) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), mark, color=colour, lw=1.3, ms=4, label=name)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if valid_key:
            axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT_COLOUR, "currentColor")
    return f"<figure>{svg}</figure>"


def _escape(text: object) -> str:
    return html.escape(str(text))
