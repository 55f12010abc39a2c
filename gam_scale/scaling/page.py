"""The page of a scaling report: sentences, tables and figures of an analysis."""

from gam_scale.report.numbers import Form, Range, between, large
from gam_scale.report.page import Folded, KeyFigures, Page, Part, Sentences
from gam_scale.report.table import Table
from gam_scale.scaling import tables
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.figures import figures
from gam_scale.scaling.law_text import latex
from gam_scale.scaling.points import UNNAMED
from gam_scale.scaling.run_table import run_table
from gam_scale.scaling.standing_figures import standing
from gam_scale.scaling.supplement import Supplement
from gam_scale.scaling.supplement_figures import supplement_figures, supplement_tables
from gam_scale.scaling.words import does_not_show, shows

FIRST_TABLES = 4
"""Tables that stand before the figures: law, best use of compute, extrapolation and its cost."""
LONG = 30
"""Rows above which a table is folded."""


def page(analysis: Analysis, cost: Cost, code: str, source: str, supplement: Supplement) -> Page:
    """Return the page of a report, which answers the most frequent questions first.

    Args:
        analysis: the results.
        cost: GPUs of the table of costs.
        code: version of the code that made the results.
        source: what the runs were read from.
        supplement: what else is known of the runs.
    """
    names = [name for name, _ in analysis.measured]
    shown = [*tables.tables(analysis, cost), *supplement_tables(supplement)]
    said = [*shows(analysis), *supplement.shown()]
    first = [Sentences("Who is best", said[:1]), *standing(analysis)] if len(names) > 1 else []
    limits = [*does_not_show(analysis), *supplement.sentences()]
    parts: list[Part] = [
        *first,
        *_key_figures(analysis),
        Sentences("What the runs show", said[bool(first) :]),
        Sentences("What the runs do not show", limits),
        *shown[:FIRST_TABLES],
        *figures(analysis),
        *supplement_figures(supplement, names),
        *map(_folded, shown[FIRST_TABLES:]),
        tables.settings(analysis, cost, code, source),
    ]
    parts += [
        Folded("Every run", run_table(analysis)),
        Folded("The law as LaTeX", latex(analysis)),
    ]
    if supplement.sweep:
        parts.append(Folded("The sweep", supplement.sweep))
    return Page("Scaling report", _subject(analysis), parts)


def _folded(table: Table) -> Part:
    """Return the table, folded if it is long."""
    return Folded(table.title, table) if len(table.rows) > LONG else table


def _subject(analysis: Analysis) -> str:
    rows = sum(len(points) for _, points in analysis.measured)
    names = ", ".join(name for name, _ in analysis.measured)
    low = min(float(points.params.min()) for _, points in analysis.measured)
    high = max(float(points.params.max()) for _, points in analysis.measured)
    what = f" of {names}" if names != UNNAMED else ""
    return f"{rows} measured losses{what}, {large(low)} to {large(high)} parameters."


def _key_figures(analysis: Analysis) -> list[Part]:
    """Return the key figures of a single family; nothing if there are several."""
    if len(analysis.families) > 1:
        return []
    family = analysis.families[0]
    law, intervals = family.fit.law, family.intervals
    form: Form = "{:.2f}".format

    def figure(name: str, value: float, interval: Range) -> tuple[str, str, str]:
        return name, form(value), between(interval, form)

    return [
        KeyFigures(
            [
                figure("alpha, by size", law.alpha, intervals["alpha"]),
                figure("beta, by data", law.beta, intervals["beta"]),
                figure("best size grows as C to the", family.optimum.a, intervals["a"]),
                figure("irreducible loss, nats", law.E, intervals["E"]),
            ]
        )
    ]
