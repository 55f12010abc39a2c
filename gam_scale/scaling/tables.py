"""Figures of an analysis as tables, for a page, for Markdown and for CSV."""

from gam_scale.report.numbers import between, hours, large, ranged, scientific, times
from gam_scale.report.table import Table
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.bootstrap import LEVEL
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.law import COEFFICIENTS


def tables(analysis: Analysis, cost: Cost) -> list[Table]:
    """Every table that the analysis has data for."""
    made = [coefficients(analysis), optimum(analysis), extrapolations(analysis)]
    made += [costs(analysis, cost), quality(analysis)]
    if any(f.held_out for f in analysis.families):
        made.append(held_out(analysis))
    if analysis.minima:
        made.append(minima(analysis))
    return made + ([comparisons(analysis), differences(analysis)] if analysis.pairs else [])


def coefficients(analysis: Analysis) -> Table:
    """E, A, B, alpha, beta of each family."""
    forms = {c: ("{:.3g}" if c in "AB" else "{:.3f}").format for c in COEFFICIENTS}
    rows = [
        [f.name] + [ranged(getattr(f.fit.law, c), f.intervals[c], forms[c]) for c in COEFFICIENTS]
        for f in analysis.families
    ]
    note = (
        f"L = E + A / N^alpha + B / D^beta, in nats per token; in brackets {LEVEL:.0%} intervals."
    )
    return Table("The fitted law", ["family", *COEFFICIENTS], rows, note)


def quality(analysis: Analysis) -> Table:
    """How near the law comes to the runs, and how the fit got there."""
    rows = [
        [
            f.name,
            f"{f.fit.objective:.4e}",
            f"{f.error:.2%}",
            f"{f.worst:.2%}",
            f"{f.fit.met} of {f.fit.starts}",
            f"{f.fit.gradient:.0e}",
        ]
        for f in analysis.families
    ]
    header = ["family", "objective", "mean error", "largest", "starts that met", "gradient"]
    note = (
        f"The objective is the summed Huber loss (delta {analysis.settings.fit.delta:g}) on log L; "
        "starts that met ended at its least value; the gradient there is over delta."
    )
    return Table("The quality of the fit", header, rows, note)


def optimum(analysis: Analysis) -> Table:
    """Exponents of the best size and data."""
    rows = []
    for f in analysis.families:
        iso = "" if f.isoflop.a is None else ranged(f.isoflop.a, f.isoflop.a_interval)
        rows.append(
            [
                f.name,
                ranged(f.optimum.a, f.intervals["a"]),
                ranged(f.optimum.b, f.intervals["b"]),
                iso,
                f"{f.optimum.flops_per_pair:.2f}",
            ]
        )
    header = ["family", "a (law)", "b (law)", "a (isoFLOP)", "FLOPs / (N D)"]
    note = "The best size grows as C^a and the best number of tokens as C^b with compute C."
    return Table("The best use of compute", header, rows, note)


def extrapolations(analysis: Analysis) -> Table:
    """Models that were not trained."""
    rows = [
        [
            f.name,
            large(e.params),
            e.rule,
            ranged(e.tokens, e.tokens_interval, large),
            scientific(e.flops),
            ranged(e.loss, e.loss_interval),
            _beyond(e.params / float(f.points.params.max())),
        ]
        for f in analysis.families
        for e in f.extrapolations
    ]
    header = [
        "family",
        "parameters",
        "tokens by",
        "tokens",
        "FLOPs",
        "loss",
        "beyond the runs",
    ]
    note = (
        "optimal: as many tokens as make this size the best for its compute, under the law; the "
        "last column is the size over that of the largest model trained."
    )
    return Table("Extrapolation", header, rows, note)


def costs(analysis: Analysis, cost: Cost) -> Table:
    """GPU-hours of the extrapolated models."""
    rows = []
    for f in analysis.families:
        for e in f.extrapolations:
            cells = [hours(cost.hours(e.flops, gpu)) for gpu in cost.gpus]
            flops = ranged(e.flops, e.flops_interval, scientific)
            rows.append([f.name, large(e.params), e.rule, flops, *cells])
    header = ["family", "parameters", "tokens by", "FLOPs", *(gpu.name for gpu in cost.gpus)]
    note = (
        f"GPU-hours of one training run in bf16 at {cost.share:.0%} of the data sheet's dense "
        "rate, an assumption. Memory, communication, failures and tuning are left out "
        "(tools/plan.py estimates the first two for a config)."
    )
    return Table("Cost in GPU-hours", header, rows, note)


def held_out(analysis: Analysis) -> Table:
    """Prediction of the largest models."""
    rows = [
        [
            f.name,
            str(len(f.held_out.loss)),
            f"{large(f.held_out.params.min())} to {large(f.held_out.params.max())}",
            f"{f.held_out.mean_error:.2%}",
            f"{f.held_out.bias:+.2%}",
            f"{f.held_out.fitted_error:.2%}",
        ]
        for f in analysis.families
        if f.held_out
    ]
    header = ["family", "runs", "parameters", "mean error", "bias", "on the runs fitted"]
    note = "Predicted over measured loss, less one, of a law fitted without these models."
    return Table("Prediction of the largest models", header, rows, note)


def minima(analysis: Analysis) -> Table:
    """IsoFLOP minima."""
    laws = {f.name: f for f in analysis.families}
    rows = [
        [name, scientific(p.flops), large(p.params), f"{p.loss:.3f}"]
        + [large(_by_law(laws[name], p.flops)) if name in laws else "no law"]
        for name, p in analysis.minima
    ]
    header = ["family", "FLOPs", "parameters", "loss", "by the law"]
    return Table(
        "IsoFLOP minima", header, rows, "The best size by parabola, and by the fitted law."
    )


def comparisons(analysis: Analysis) -> Table:
    """Tests of whether families differ."""
    rows = [
        [pair.first, pair.second, t.hypothesis, f"{t.statistic:.1f}", f"{t.p:.3f}"]
        for pair in analysis.pairs
        for t in pair.tests
    ]
    header = ["first", "second", "hypothesis", "statistic", "p"]
    note = (
        "A small p says that the hypothesis does not explain the runs: data simulated under it, "
        f"{analysis.settings.draws} times, seldom differ as much. Many pairs make small p more "
        "frequent; divide the level by their number."
    )
    return Table("Do the families differ?", header, rows, note)


def differences(analysis: Analysis) -> Table:
    """Intervals of second less first."""
    rows = [
        [f"{pair.second} less {pair.first}"]
        + [between(pair.differences.get(c), "{:+.3g}".format) for c in (*COEFFICIENTS, "a")]
        for pair in analysis.pairs
    ]
    return Table(
        "Differences between the laws",
        ["families", *COEFFICIENTS, "a"],
        rows,
        f"{LEVEL:.0%} intervals; one without zero is a difference.",
    )


def settings(analysis: Analysis, cost: Cost, code: str, source: str) -> Table:
    """Everything that the results depend on."""
    s = analysis.settings
    starts = analysis.families[0].fit.starts
    rows = [
        ["code version", code],
        ["data", source],
        ["rows", ", ".join(f"{name} {len(points)}" for name, points in analysis.measured)],
        ["Huber delta", f"{s.fit.delta:g}"],
        ["starts", f"{starts} (grid of {s.fit.grid})"],
        ["shared exponent (alpha = beta)", "yes" if s.fit.shared_exponent else "no"],
        ["refits behind intervals", f"{s.resamples:,}"],
        ["data sets behind tests", f"{s.draws:,}"],
        ["seed", str(s.seed)],
        ["share of the GPUs' rate", f"{cost.share:g}"],
    ]
    return Table("Settings", ["setting", "value"], rows, in_words=True)


def _beyond(ratio: float) -> str:
    return times(ratio) if ratio > 1 else "not larger"


def _by_law(family: Family, flops: float) -> float:
    return float(family.optimum.params(flops))
