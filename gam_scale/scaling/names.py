"""Short, one-line names of families for a report, whatever names the file has."""

from dataclasses import replace
from typing import Any

from gam_scale.report.drawn import shorten
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.supplement import Supplement

OF_FAMILIES = ("curves", "rates", "contexts", "forecasts")
"""Attributes of a supplement whose items name a family."""


def readable(analysis: Analysis, supplement: Supplement) -> tuple[Analysis, Supplement]:
    """Return both with short, distinct names of families; fit.json keeps the file's names."""
    names = _short([f.name for f in analysis.families] + [left.name for left in analysis.left_out])
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
    """Return the short name of each name, with a number if another name already has it."""
    short: dict[str, str] = {}
    for name in names:
        wanted = shown = shorten(name)
        count = 1
        while shown in short.values():
            count += 1
            shown = f"{wanted} ({count})"
        short[name] = shown
    return short
