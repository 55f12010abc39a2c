"""The files of a report, in one folder."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from gam_scale.experiment.code_version import code_version
from gam_scale.files import csv_bytes
from gam_scale.report.numbers import UNKNOWN
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.extrapolation import ASKED
from gam_scale.scaling.fit_json import as_dict
from gam_scale.scaling.law_text import latex, law_rows
from gam_scale.scaling.moments import moment
from gam_scale.scaling.names import readable
from gam_scale.scaling.page import page
from gam_scale.scaling.report_folder import SUMMARY, ReportFolder
from gam_scale.scaling.run_table import shown_columns
from gam_scale.scaling.source import FITTED_COLUMNS, MADE_COLUMNS, Source
from gam_scale.scaling.supplement import Supplement

PAGES = ("report.html", "report.md")
TABLES = ("fitted.csv", "frontier.csv", "extrapolation.csv", "law.csv")
LATEX = "law.tex"


def check_folder(out: str | Path, inputs: Iterable[Path]) -> None:
    """Refuse a folder that a report cannot be written to, before anything is fitted.

    Raises:
        UserError: the folder cannot be used; the message says why.
    """
    ReportFolder(out, inputs).check((SUMMARY, *PAGES, *TABLES, LATEX))


def write_report(
    analysis: Analysis,
    cost: Cost,
    source: Source,
    out: str | Path,
    supplement: Supplement | None = None,
    inputs: Iterable[Path] = (),
) -> list[Path]:
    """Write fit.json, report.html, report.md, each figure as PNG and SVG, law.tex and four CSVs.

    Args:
        analysis: the results.
        cost: GPUs of the table of costs.
        source: what the runs were read from.
        out: the folder; the files of an earlier report in it are replaced or removed.
        supplement: what else is known of the runs.
        inputs: files that the report is made of, which must not be replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    code = code_version()
    shown = readable(analysis, supplement or Supplement())
    files = page(shown[0], cost, code, str(source), shown[1]).files("png", "svg")
    tables = (
        _fitted(analysis),
        _frontier(analysis),
        _extrapolations(analysis, cost, source, [code, moment(time.time())]),
        law_rows(analysis),
    )
    files |= {name: csv_bytes(*table) for name, table in zip(TABLES, tables, strict=True)}
    files[LATEX] = latex(analysis).encode()
    summary = {"code_version": code, "data": str(source)} | as_dict(analysis)
    return ReportFolder(out, inputs).replace(files, summary)


def _fitted(analysis: Analysis) -> tuple[list[str], list[Sequence[object]]]:
    rows: list[Sequence[object]] = []
    laws = {family.name: family.fit.law for family in analysis.families}
    further = shown_columns([points for _, points in analysis.measured])
    for name, p in analysis.measured:
        numbers = zip(*(c.tolist() for c in (p.params, p.tokens, p.flops, p.loss)), strict=True)
        fitted: list[tuple[object, object]] = [("", "")] * len(p)
        if name in laws:
            loss = laws[name].loss(p.params, p.tokens)
            fitted = list(zip(loss.tolist(), (loss / p.loss - 1).tolist(), strict=True))
        own = zip(*(p.columns[column] for column in further), strict=True) if further else ()
        cells = list(own) or [()] * len(p)
        rows += [(name, *n, *f, *c) for n, f, c in zip(numbers, fitted, cells, strict=True)]
    header = ["family", "params", "tokens", "flops", "loss", "fitted_loss", "error"]
    return [*header, *further], rows


def _frontier(analysis: Analysis) -> tuple[list[str], list[Sequence[object]]]:
    rows: list[Sequence[object]] = []
    for family in analysis.families:
        o, c = family.optimum, float(family.points.flops.min())
        while c <= 10**0.25 * family.farthest:
            rows.append((family.name, c, float(o.params(c)), float(o.tokens(c)), float(o.loss(c))))
            c *= 10**0.25
    return ["family", "flops", "params", "tokens", "loss"], rows


def _extrapolations(
    analysis: Analysis, cost: Cost, source: Source, made: list[str]
) -> tuple[list[str], list[Sequence[object]]]:
    """Return predictions; those that were asked for are forecasts, and say what they stand on."""
    header = ["family", "tokens_by", "params", "tokens", "flops", "loss"]
    ranges = ("tokens", "flops", "loss", "loss_run")
    header += [f"{name}_{end}" for name in ranges for end in ("low", "high")]
    header += [f"gpu_hours_{gpu.name}" for gpu in cost.gpus]
    header += [*FITTED_COLUMNS, *MADE_COLUMNS]
    rows: list[Sequence[object]] = []
    for family in analysis.families:
        for e in family.extrapolations:
            ends = [end for name in ranges for end in getattr(e, f"{name}_interval") or ("", "")]
            hours = [cost.hours(e.flops, gpu) for gpu in cost.gpus]
            cells = [e.tokens, e.flops, e.loss, *ends, *hours]
            shown = cells if e.is_known else [UNKNOWN] * len(cells)
            stands_on = source.fitted(family.points) + made
            further = stands_on if e.rule == ASKED else [""] * len(stands_on)
            rows.append((family.name, e.rule, e.params, *shown, *further))
    return header, rows
