"""The report: one HTML page that needs nothing else, and the same as Markdown with its figures."""

from dataclasses import dataclass
from html import escape

from gam_scale.evaluate import page
from gam_scale.evaluate.table import Table
from gam_scale.scaling import document, tables
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.extra_plots import extra_plots, extra_tables
from gam_scale.scaling.extras import Extras
from gam_scale.scaling.plots import Plot, plots
from gam_scale.scaling.points import UNNAMED
from gam_scale.scaling.words import does_not_show, large, ranged, shows

TITLE = "Scaling report"


@dataclass(frozen=True)
class Report:
    """What both forms say."""

    analysis: Analysis
    plots: list[Plot]
    tables: list[Table]
    settings: Table
    extras: Extras

    def does_not_show(self) -> list[str]:
        """What the runs do not show."""
        return [*does_not_show(self.analysis), *self.extras.sentences()]

    @classmethod
    def of(
        cls, analysis: Analysis, cost: Cost, code: str, source: str, extras: Extras | None = None
    ) -> "Report":
        """Gather the parts."""
        extras = extras or Extras()
        names = [name for name, _ in analysis.measured]
        return cls(
            analysis,
            [*plots(analysis), *extra_plots(extras, names)],
            [*tables.tables(analysis, cost), *extra_tables(extras)],
            tables.settings(analysis, cost, code, source),
            extras,
        )


def html(report: Report) -> str:
    """The page."""
    analysis = report.analysis
    parts = [
        _key_figures(analysis),
        page.sentences("What the runs show", shows(analysis)),
        page.sentences("What the runs do not show", report.does_not_show()),
        *[page.table(t) for t in report.tables[:4]],
        *[document.figure(p) for p in report.plots],
        *[page.table(t) for t in report.tables[4:]],
        page.table(report.settings, "list"),
        _sweep(report.extras.sweep),
    ]
    return page.document(TITLE, _subject(analysis), parts)


def markdown(report: Report) -> str:
    """The same in Markdown; figures are the .png files beside it."""
    analysis = report.analysis
    parts = [
        f"# {TITLE}",
        _subject(analysis),
        document.markdown_sentences("What the runs show", shows(analysis)),
        document.markdown_sentences("What the runs do not show", report.does_not_show()),
        *[document.markdown_table(t) for t in report.tables],
        *[document.markdown_figure(p) for p in report.plots],
        document.markdown_table(report.settings),
    ]
    if report.extras.sweep:
        parts.append(f"## The sweep\n\n```\n{report.extras.sweep}\n```")
    return "\n\n".join(parts) + "\n"


def _subject(analysis: Analysis) -> str:
    rows = sum(len(points) for _, points in analysis.measured)
    names = ", ".join(name for name, _ in analysis.measured)
    low = min(float(points.params.min()) for _, points in analysis.measured)
    high = max(float(points.params.max()) for _, points in analysis.measured)
    what = f" of {names}" if names != UNNAMED else ""
    return f"{rows} measured losses{what}, {large(low)} to {large(high)} parameters."


def _key_figures(analysis: Analysis) -> str:
    if len(analysis.families) > 1:
        return ""
    family = analysis.families[0]
    law, intervals = family.fit.law, family.intervals
    items = [
        ("alpha, by size", ranged(law.alpha, intervals["alpha"], "{:.2f}")),
        ("beta, by data", ranged(law.beta, intervals["beta"], "{:.2f}")),
        ("best size grows as C to the", ranged(family.optimum.a, intervals["a"], "{:.2f}")),
        ("irreducible loss, nats", ranged(law.E, intervals["E"], "{:.2f}")),
    ]
    cells = "".join(
        f"<div><dt>{label}</dt><dd>{value.replace(' [', ' <small>[')}"
        f"{'</small>' if '[' in value else ''}</dd></div>"
        for label, value in items
    )
    return f'<dl class="key">{cells}</dl>'


def _sweep(text: str) -> str:
    """The sweep's file, folded."""
    if not text:
        return ""
    opened = "<section><details><summary>The sweep</summary>"
    return f"{opened}<pre>{escape(text)}</pre></details></section>"
