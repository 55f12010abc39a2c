"""The report: one HTML page that needs nothing else, and the same as Markdown with its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gam_scale.evaluate.table import Table
from gam_scale.report import STYLE
from gam_scale.scaling import tables
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.extra_plots import extra_plots, extra_tables
from gam_scale.scaling.extras import Extras
from gam_scale.scaling.plots import LIGHT, Plot, plots
from gam_scale.scaling.words import does_not_show, large, ranged, shows

# The eight colours of gam_scale.evaluate.report on dark paper.
_DARK = ("#78aeea", "#ee9a62", "#5cc4a0", "#c496e0", "#d9b64a", "#f08cb4", "#70c8e2", "#9299a4")
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
        names = [family.name for family in analysis.families]
        return cls(
            analysis,
            [*plots(analysis), *extra_plots(extras, names)],
            [*tables.tables(analysis, cost), *extra_tables(extras)],
            tables.settings(analysis, cost, code, source),
            extras,
        )


def html(report: Report) -> str:
    """The page: light and dark, for phones and print, without network or scripts."""
    analysis = report.analysis
    parts = [
        f"<header><h1>{TITLE}</h1><p>{escape(_subject(analysis))}</p></header>",
        _key_figures(analysis),
        _sentences("What the runs show", shows(analysis)),
        _sentences("What the runs do not show", report.does_not_show()),
        *[_table(t) for t in report.tables[:4]],
        *[_figure(p) for p in report.plots],
        *[_table(t) for t in report.tables[4:]],
        _table(report.settings, "list"),
        _sweep(report.extras.sweep),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{TITLE}</title>\n<style>{STYLE}{_style()}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def markdown(report: Report) -> str:
    """The same in Markdown; figures are the .png files beside it."""
    analysis = report.analysis
    parts = [f"# {TITLE}", _subject(analysis), "## What the runs show"]
    parts.append("\n".join(f"* {_plain(s)}" for s in shows(analysis)))
    parts.append("## What the runs do not show")
    parts.append("\n".join(f"* {_plain(s)}" for s in report.does_not_show()))
    parts += [_markdown_table(t) for t in report.tables]
    for p in report.plots:
        keys = f" ({', '.join(name for _, name in p.keys)})" if len(p.keys) > 1 else ""
        parts.append(f"## {p.title}\n\n![{p.title}]({p.name}.png)\n\n{p.caption}{keys}")
    parts.append(_markdown_table(report.settings))
    if report.extras.sweep:
        parts.append(f"## The sweep\n\n```\n{report.extras.sweep}\n```")
    return "\n\n".join(parts) + "\n"


def _subject(analysis: Analysis) -> str:
    rows = sum(len(f.points) for f in analysis.families)
    names = ", ".join(f.name for f in analysis.families)
    low = min(float(f.points.params.min()) for f in analysis.families)
    high = max(float(f.points.params.max()) for f in analysis.families)
    what = f" of {names}" if names != "all" else ""
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


def _sentences(title: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(s)}</li>" for s in sentences)
    return f"<section><h2>{title}</h2><ul>{items}</ul></section>"


def _figure(plot: Plot) -> str:
    keys = "".join(
        f'<span class="line" style="--train:var(--line{i % 8})">{escape(name)}</span> '
        for i, name in plot.keys
        if len(plot.keys) > 1
    )
    return (
        f"<figure><figcaption><b>{escape(plot.title)}</b><span>{escape(plot.caption)}</span> "
        f"<span>{keys}</span></figcaption>{plot.svg()}{plot.svg(narrow=True)}</figure>"
    )


def _table(t: Table, kind: str = "wide") -> str:
    head = "".join(f"<th scope=col>{escape(cell)}</th>" for cell in t.header)
    rows = "".join(
        f"<tr><th scope=row>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in t.rows
    )
    note = f'<p class="quiet note">{escape(t.note)}</p>' if t.note else ""
    body = f"<div class={kind} tabindex=0><table><tr>{head}</tr>{rows}</table></div>{note}"
    return f"<section><h2>{escape(t.title)}</h2>{body}</section>"


def _sweep(text: str) -> str:
    """The sweep's file, folded."""
    if not text:
        return ""
    opened = "<section><details><summary>The sweep</summary>"
    return f"{opened}<pre>{escape(text)}</pre></details></section>"


def _markdown_table(t: Table) -> str:
    lines = [t.header, ["---", *["--:"] * (len(t.header) - 1)], *t.rows]
    body = "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
    return f"## {t.title}\n\n{body}" + (f"\n\n{_plain(t.note)}" if t.note else "")


def _plain(text: str) -> str:
    """Text whose stars and underscores Markdown is not to read as emphasis."""
    return text.replace("*", "\\*").replace("_", "\\_")


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return ":root {" + "".join(f"--line{i}:{v};" for i, v in enumerate(values)) + "}"

    return (
        colours(LIGHT)
        + f"\n@media screen and (prefers-color-scheme: dark) {{ {colours(_DARK)} }}\n"
        ".wide { overflow-x: auto; } .wide th, .wide td { padding-left: 1rem; }\n"
        ".wide th[scope=row], .wide th:first-child { padding-left: 0; }\n"
        ".wide th:not(:first-child) { text-align: right; padding-right: 0; }\n"
        ".wide td, .wide th { white-space: nowrap; } svg { max-width: none; }\n"
        "ul { margin: 0; padding-left: 1.2rem; max-width: 46rem; } li { margin: .35rem 0; }\n"
        "dd small { font-size: .55em; font-weight: 400; color: var(--quiet); "
        "white-space: nowrap; }\n"
        ".list th { width: 45%; } .list td { text-align: left; }\n"
        'svg[class$="-narrow"] { display: none; }\n'
        '@media screen and (max-width: 48rem) { svg[class$="-narrow"] { display: block; }\n'
        '  figure svg:not([class$="-narrow"]) { display: none; } }\n'
        "@media print { .wide { overflow: visible; } .wide td, .wide th { white-space: normal; }\n"
        "  table { font-size: .75rem; } }\n"
    )
