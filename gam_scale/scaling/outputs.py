"""The files of a report, in one folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gam_scale.errors import UserError
from gam_scale.experiment.code_version import code_version
from gam_scale.files import csv_bytes, write_bytes, write_json
from gam_scale.scaling.analysis import Analysis, as_dict
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.page import page
from gam_scale.scaling.supplement import Supplement


def write_report(
    analysis: Analysis,
    cost: Cost,
    source: str,
    out: str | Path,
    supplement: Supplement | None = None,
) -> list[Path]:
    """Write fit.json, report.html, report.md, each figure as PNG and SVG, and three CSVs.

    Args:
        analysis: the results.
        cost: GPUs of the table of costs.
        source: what the runs were read from, as the report is to name it.
        out: the folder; files of an earlier report in it are replaced.
        supplement: what else is known of the runs.

    Raises:
        UserError: the folder cannot be written.
    """
    code = code_version()
    files = page(analysis, cost, code, source, supplement or Supplement()).files("png", "svg")
    files["runs.csv"] = csv_bytes(*_runs(analysis))
    files["frontier.csv"] = csv_bytes(*_frontier(analysis))
    files["extrapolation.csv"] = csv_bytes(*_extrapolations(analysis, cost))
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_bytes(out / name, data)
        write_json(out / "fit.json", {"code_version": code, "data": source} | as_dict(analysis))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    return [out / name for name in ("fit.json", *files)]


def _runs(analysis: Analysis) -> tuple[list[str], list[Sequence[object]]]:
    rows: list[Sequence[object]] = []
    columns: tuple[np.ndarray, ...]
    for family in analysis.families:
        p = family.points
        fitted = family.fit.law.loss(p.params, p.tokens)
        columns = (p.params, p.tokens, p.flops, p.loss, fitted, fitted / p.loss - 1)
        numbers = zip(*(c.tolist() for c in columns), strict=True)
        rows += [(family.name, *row) for row in numbers]
    for left in analysis.left_out:
        p = left.points
        columns = (p.params, p.tokens, p.flops, p.loss)
        numbers = zip(*(c.tolist() for c in columns), strict=True)
        rows += [(left.name, *row, "", "") for row in numbers]
    return ["family", "params", "tokens", "flops", "loss", "fitted_loss", "error"], rows


def _frontier(analysis: Analysis) -> tuple[list[str], list[Sequence[object]]]:
    rows: list[Sequence[object]] = []
    for family in analysis.families:
        o, c = family.optimum, float(family.points.flops.min())
        top = max(float(o.flops(t)) for t in (*analysis.settings.targets, *family.points.params))
        while c <= 10**0.25 * top:
            rows.append((family.name, c, float(o.params(c)), float(o.tokens(c)), float(o.loss(c))))
            c *= 10**0.25
    return ["family", "flops", "params", "tokens", "loss"], rows


def _extrapolations(analysis: Analysis, cost: Cost) -> tuple[list[str], list[Sequence[object]]]:
    header = ["family", "tokens_by", "params", "tokens", "flops", "loss"]
    ranges = ("tokens", "flops", "loss")
    header += [f"{name}_{end}" for name in ranges for end in ("low", "high")]
    header += [f"gpu_hours_{gpu.name}" for gpu in cost.gpus]
    rows: list[Sequence[object]] = []
    for family in analysis.families:
        for e in family.extrapolations:
            ends = [end for name in ranges for end in getattr(e, f"{name}_interval") or ("", "")]
            hours = [cost.hours(e.flops, gpu) for gpu in cost.gpus]
            rows.append((family.name, e.rule, e.params, e.tokens, e.flops, e.loss, *ends, *hours))
    return header, rows
