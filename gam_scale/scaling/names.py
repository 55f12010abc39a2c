"""Names of families as a report has them: on one line, and short, however the file has them."""

from dataclasses import replace
from typing import Any

from gam_scale.report.drawn import shorten
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.supplement import Supplement

OF_FAMILIES = ("curves", "rates", "contexts", "forecasts")
"""What a supplement has of families, by their names."""


def readable(analysis: Analysis, supplement: Supplement) -> tuple[Analysis, Supplement]:
    """Both with names that read well and differ; fit.json keeps those of the file."""
    names = _short([name for name, _ in analysis.measured])
    if all(name == short for name, short in names.items()):
        return analysis, supplement
    families = [replace(f, name=names[f.name]) for f in analysis.families]
    left_out = [
        replace(f, name=names[f.name], reason=f.reason.replace(f.name, names[f.name]))
        for f in analysis.left_out
    ]
    pairs = [replace(p, first=names[p.first], second=names[p.second]) for p in analysis.pairs]
    of_families: dict[str, Any] = {
        name: [
            replace(each, family=names.get(each.family) or shorten(each.family))
            for each in getattr(supplement, name)
        ]
        for name in OF_FAMILIES
    }
    return (
        replace(analysis, families=families, left_out=left_out, pairs=pairs),
        replace(supplement, **of_families),
    )


def _short(names: list[str]) -> dict[str, str]:
    """By each name a short one, with a number where another already has it."""
    short: dict[str, str] = {}
    for name in names:
        wanted = shown = shorten(name)
        count = 1
        while shown in short.values():
            count += 1
            shown = f"{wanted} ({count})"
        short[name] = shown
    return short
