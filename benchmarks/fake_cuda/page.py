"""The two places of the figures: a file that the planner reads, and a table in docs/gpu.md."""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.fake_cuda.rows import LAYERS, Row, layer_of
from gam_scale.errors import UserError
from gam_scale.plan.activations import setting
from gam_scale.plan.traffic import traffic
from gam_scale.strict import read_json

FIGURES = Path("gam_scale/plan/gpu_blocks.json")
DOCS = Path("docs/gpu.md")
BEGIN, END = "<!-- python -m benchmarks.fake_cuda -->", "<!-- end -->"

Rows = Sequence[dict[str, Any]]


def merged_with_file(rows: Rows) -> Rows:
    """Return the file's rows, in which ``rows`` replace those of the same blocks or come last.

    Raises:
        UserError: the file was made with another torch.
    """
    kept = read_json(FIGURES)
    if kept["torch"] != (here := _torch()):
        raise UserError(
            f"{FIGURES} is of torch {kept['torch']} and this is {here}; expected that one, or no "
            "--update, which remakes all rows"
        )
    all_rows = (*kept["rows"], *rows)
    return list({tuple(row[f.name] for f in fields(Row)): row for row in all_rows}.values())


def write(rows: Rows) -> None:
    """Write all rows into both files; the file's figures of a former version stay."""
    kept = read_json(FIGURES)
    kept |= {"torch": _torch(), "rows": list(rows)}
    FIGURES.write_text(json.dumps(kept, indent=1) + "\n")
    text = DOCS.read_text()
    first, rest = text.split(BEGIN)
    last = rest.split(END)[1]
    DOCS.write_text(f"{first}{BEGIN}\n{tables(kept)}{END}{last}")


def _torch() -> str:
    return torch.__version__.partition("+")[0]


def tables(kept: dict[str, Any]) -> str:
    """Return Markdown: one table for each config, and one of the LAYERS."""
    configs = dict.fromkeys(row["config"] for row in kept["rows"])
    return "\n".join([*(_table(config, kept) for config in configs), _others(kept["rows"])])


def _others(rows: Rows) -> str:
    """Return the table of layers with other parts, beside what a plan counts for them."""
    lines = [
        "Layers with other settings and parts in `configs/gam_1b.json`, beside what a plan counts:",
        "",
        "| layer | graphs | kernels | kB | planned: kB |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        if row["kind"] in LAYERS:
            shown = json.dumps(LAYERS[row["kind"]])
            figures = f"{row['graphs']} | {row['kernels']} | {row['bytes'] / 1e3:,.0f}"
            lines.append(f"| `{shown}` | {figures} | {planned(row['kind']) / 1e3:,.0f} |")
    return "\n".join(lines) + "\n"


def planned(name: str) -> float:
    """Return the bytes per token of one of the LAYERS that ``tools/plan.py`` counts."""
    config = Row("gam_1b", name, "selective").settings()
    model = replace(config.model, layers=[layer_of(name)], n_layers=1)
    moved = traffic(model, model.stack()[0], setting(config, config.train.micro_batch_size))
    return moved.products + moved.others


def _table(config: str, kept: dict[str, Any]) -> str:
    before = {row["kind"]: row for row in kept["before"]["rows"] if row["config"] == config}
    lines = [
        f"`configs/{config}.json`; before: at {kept['before']['commit']}",
        "",
        "| layer | before: graphs, kernels, kB | graphs | kernels | kB | none: kB | full: kB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    usual = [
        row
        for row in kept["rows"]
        if (row["config"], row["compiled"], row["precision"]) == (config, True, "bf16")
        and row["kind"] not in LAYERS
    ]
    for kind in dict.fromkeys(row["kind"] for row in usual):
        of_kind = [row for row in usual if row["kind"] == kind]
        found = {r["recompute"]: r for r in of_kind if r["implementation"] == "portable"}
        whole = found["selective"]
        cells = [kind, _former(before.get(kind)), whole["graphs"], whole["kernels"]]
        cells += [f"{found[mode]['bytes'] / 1e3:,.0f}" for mode in ("selective", "none", "full")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
        for row in of_kind:
            if row["implementation"] != "portable":
                name = f"{kind}, {row['implementation']}"
                figures = f"{row['graphs']} | {row['kernels']} | {row['bytes'] / 1e3:,.0f}"
                lines.append(f"| {name} | | {figures} | | |")
    return "\n".join(lines) + "\n"


def _former(row: dict[str, Any] | None) -> str:
    if row is None:  # a kind that did not exist yet
        return ""
    if "error" in row:
        return row["error"]
    return f"{row['graphs']}, {row['kernels']}, {row['bytes'] / 1e3:,.0f}"
