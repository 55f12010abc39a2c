"""The results of an analysis as tables, for pages and Markdown."""

import numpy as np

from gam_scale.report.numbers import UNKNOWN as NOT_KNOWN
from gam_scale.report.numbers import (
    Form,
    Range,
    between,
    general,
    hours,
    known,
    large,
    ranged,
    scientific,
    times,
)
from gam_scale.report.table import Table
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.bootstrap import LEVEL
from gam_scale.scaling.columns import named_count
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.extrapolation import UNKNOWN, Extrapolation
from gam_scale.scaling.law import COEFFICIENTS, STEEPEST, Law
from gam_scale.scaling.seeds import seed_spread
from gam_scale.scaling.verdict import SHALLOWEST


def tables(analysis: Analysis, cost: Cost) -> list[Table]:
    """Return every table that the analysis has data for."""
    made = [coefficients(analysis), optimum(analysis), extrapolations(analysis)]
    made += [costs(analysis, cost), quality(analysis)]
    made += [table for table in (by_steps(analysis), by_count(analysis)) if table.rows]
    if any(f.held_out for f in analysis.families):
        made.append(held_out(analysis))
    if analysis.minima:
        made.append(minima(analysis))
    return made + ([comparisons(analysis), differences(analysis)] if analysis.pairs else [])


def coefficients(analysis: Analysis) -> Table:
    """Return a table of E, A, B, alpha and beta of each family."""
    rows = [
        [f.name]
        + [_ranged(analysis, getattr(f.fit.law, c), f.intervals[c], FORMS[c]) for c in COEFFICIENTS]
        for f in analysis.families
    ]
    note = (
        f"L = E + A / N^alpha + B / D^beta, in nats per token; in brackets {LEVEL:.0%} intervals."
    )
    return Table("The fitted law", ["family", *COEFFICIENTS], rows, note, stacks=True)


def quality(analysis: Analysis) -> Table:
    """Return a table of how near each law is to its runs, and how the fit ended."""
    rows = [
        [
            f.name,
            scientific(f.fit.objective, 5),
            f"{f.error:.2%}",
            f"{f.worst:.2%}",
            known(seed_spread(f.points), "{:.2%}".format),
            f"{f.fit.starts_at_minimum} of {f.fit.starts}",
            scientific(f.fit.gradient, 1),
        ]
        for f in analysis.families
    ]
    header = ["family", "objective", "mean error", "largest", "seeds", "starts that met"]
    header.append("gradient")
    note = (
        "seeds: standard deviation of the loss between runs of one setting that differ by their "
        "seed, the noise that no law explains; unknown where each was run once. "
        f"The objective is the summed Huber loss (delta {analysis.settings.fit.delta:g}) on log L; "
        "starts that met ended at its least value; the gradient there is over delta."
    )
    return Table("The quality of the fit", header, rows, note)


def optimum(analysis: Analysis) -> Table:
    """Return a table of the exponents of the best size and data."""
    rows = []
    for f in analysis.families:
        rows.append(
            [
                f.name,
                _ranged(analysis, f.optimum.a, f.intervals["a"]),
                _ranged(analysis, f.optimum.b, f.intervals["b"]),
                _ranged(analysis, f.isoflop.a, f.isoflop.a_interval),
                f"{f.optimum.flops_per_pair:.2f}",
            ]
        )
    header = ["family", "a (law)", "b (law)", "a (isoFLOP)", "FLOPs / (N D)"]
    note = (
        "The best size grows as C^a and the best number of tokens as C^b with compute C. By the "
        "law a = beta / (alpha + beta), from all runs and the law's form; by isoFLOP it is the "
        "slope through the best size of each budget, from the runs about that size and no form."
    )
    return Table("The best use of compute", header, rows, note, stacks=True)


def extrapolations(analysis: Analysis) -> Table:
    """Return a table of predictions for models that were not trained."""
    rows = [
        [
            f.name,
            large(e.params),
            e.rule,
            *_extrapolated(e),
            _beyond(e.params / float(f.points.params.max())),
            _beyond(e.tokens / float(f.points.tokens.max()), e.is_known),
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
        "size beyond",
        "tokens beyond",
    ]
    note = (
        "optimal: as many tokens as make this size the best for its compute, under the law, "
        f"unknown where their interval spans more than a factor of {UNKNOWN:,.0f}; asked: a "
        "model that was asked about, whose interval is of the loss of one run, and so wider than "
        "the law's, which the other rows have. The last columns are the size over that of the "
        "largest model trained, and the tokens over the most that a model was trained on."
    )
    return Table("Extrapolation", header, rows, note, stacks=True)


def costs(analysis: Analysis, cost: Cost) -> Table:
    """Return a table of GPU-hours of the extrapolated models."""
    rows = []
    for f in analysis.families:
        for e in f.extrapolations:
            cells = [
                hours(cost.hours(e.flops, gpu)) if e.is_known else NOT_KNOWN for gpu in cost.gpus
            ]
            flops = ranged(e.flops, e.flops_interval, scientific) if e.is_known else NOT_KNOWN
            rows.append([f.name, large(e.params), e.rule, flops, *cells])
    header = ["family", "parameters", "tokens by", "FLOPs", *(gpu.name for gpu in cost.gpus)]
    note = (
        f"GPU-hours of one training run in bf16 at {cost.share:.0%} of the data sheet's dense "
        "rate, an assumption. Memory, communication, failures and tuning are left out "
        "(tools/plan.py estimates the first two for a config)."
    )
    return Table("Cost in GPU-hours", header, rows, note, stacks=True)


def held_out(analysis: Analysis) -> Table:
    """Return a table of predictions for runs that the law was not fitted to."""
    what = next(f.held_out.description for f in analysis.families if f.held_out)
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
    note = "Predicted over measured loss, less one, of a law fitted without these runs."
    return Table(f"Prediction of {what}", header, rows, note)


def minima(analysis: Analysis) -> Table:
    """Return a table of isoFLOP minima."""
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
    """Return a table of tests of whether families differ."""
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
    """Return a table of intervals of the second law's coefficients and ``a`` minus the first's."""
    rows = [
        [f"{pair.second} less {pair.first}"]
        + [_difference(pair.differences.get(c)) for c in (*COEFFICIENTS, "a")]
        for pair in analysis.pairs
    ]
    return Table(
        "Differences between the laws",
        ["families", *COEFFICIENTS, "a"],
        rows,
        f"{LEVEL:.0%} intervals; one without zero is a difference.",
        stacks=True,
    )


def settings(analysis: Analysis, cost: Cost, code: str, source: str) -> Table:
    """Return a table of everything that the results depend on."""
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
        ["runs held out", s.held],
        ["runs left out for few steps", f"{analysis.too_short:,} (of fewer than {s.min_steps:,})"],
        ["share of the GPUs' rate", f"{cost.share:g}"],
    ]
    return Table("Settings", ["setting", "value"], rows, in_words=True)


def by_steps(analysis: Analysis) -> Table:
    """Return a table of how each law moves without runs of few steps."""
    rows = [
        [f.name, f"{w.least:,}" if w.least else "all runs", str(w.runs)]
        + [*_shape(w.law), f"{w.error:.2%}"]
        for f in analysis.families
        for w in f.without_short
    ]
    header = ["family", "steps at least", "runs", "E", "alpha", "beta", "a", "mean error"]
    note = (
        "The law again, without runs of fewer optimizer steps (--min-steps): exponents that keep "
        "moving are those of runs which have hardly begun to learn."
    )
    return Table("Runs of few steps left out", header, rows, note)


def by_count(analysis: Analysis) -> Table:
    """Return a table of the law by each known count of N."""
    rows = []
    for f in analysis.families:
        if f.by_count:
            own = named_count(f.points) or "params"
            for name, fitted in {own: f.fit, **f.by_count}.items():
                n, law = fitted.design.params, fitted.law
                sizes = f"{large(float(n.min()))} to {large(float(n.max()))}"
                error = np.abs(law.loss(n, fitted.design.tokens) / fitted.design.loss - 1).mean()
                power = _power_of_size(f.points.flops, n, fitted.design.tokens)
                rows.append([f.name, name.replace("_", " "), sizes, *_shape(law, power)])
                rows[-1].append(f"{error:.2%}")
    header = ["family", "N counts", "N", "E", "alpha", "beta", "a", "mean error"]
    note = (
        "The same runs by another count of their parameters: embeddings are most of a small model "
        "and little of a large one, and bend its law. In a, FLOPs a token grow as the power of "
        "this N that the runs show."
    )
    return Table("What counts as parameters", header, rows, note)


FORMS: dict[str, Form] = {c: general if c in "AB" else "{:.3f}".format for c in COEFFICIENTS}
"""How each coefficient is written."""


def _power_of_size(flops: np.ndarray, params: np.ndarray, tokens: np.ndarray) -> float:
    """Return g of FLOPs a token, C / D ~ N^g, by least squares: 1 where C = k N D."""
    return float(np.polyfit(np.log(params), np.log(flops / tokens), 1)[0])


def _shape(law: Law, power: float = 1.0) -> list[str]:
    """Return the cells E, alpha, beta and a; no law if an exponent is not within its bounds.

    Under C ~ N^g D with g = ``power``, the best N grows as C^(beta / (alpha + g beta)).
    """
    if not all(SHALLOWEST < exponent < STEEPEST for exponent in (law.alpha, law.beta)):
        return ["no law"] * 4
    cells = [FORMS[c](getattr(law, c)) for c in ("E", "alpha", "beta")]
    return [*cells, f"{law.beta / (law.alpha + power * law.beta):.3f}"]


def _ranged(
    analysis: Analysis, value: float | None, interval: Range, form: Form = "{:.3f}".format
) -> str:
    """Format a value with its interval, or without if no intervals were asked for."""
    if value is None or not np.isfinite(value):
        return NOT_KNOWN
    if interval is None and analysis.settings.resamples:
        return f"{form(value)} [{NOT_KNOWN}]"
    return ranged(value, interval, form)


def _extrapolated(e: Extrapolation) -> list[str]:
    """Return the cells tokens, FLOPs and loss of a model that was not trained."""
    if not e.is_known:
        return [NOT_KNOWN] * 3
    tokens = ranged(e.tokens, e.tokens_interval, large)
    return [tokens, scientific(e.flops), ranged(e.loss, e.shown_interval)]


def _difference(interval: Range) -> str:
    if interval is None:
        return NOT_KNOWN
    return between(interval, lambda end: ("+" if end > 0 else "") + general(end))


def _beyond(ratio: float, is_known: bool = True) -> str:
    if not is_known:
        return NOT_KNOWN
    return times(ratio) if ratio > 1.005 else "not larger"


def _by_law(family: Family, flops: float) -> float:
    return float(family.optimum.params(flops))
