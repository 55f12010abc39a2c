"""The content of a report's fit.json: every figure of an analysis by name."""

from typing import Any

import numpy as np

from gam_scale.files import finite
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.bootstrap import LEVEL
from gam_scale.scaling.isoflop import IsoFlop
from gam_scale.scaling.seeds import seed_spread


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """Return the content of fit.json: every figure by name; an only family's also at the top."""
    settings = analysis.settings
    families = {family.name: _family_dict(family) for family in analysis.families}
    only = next(iter(families.values())) if len(families) == 1 else {}
    figures = only | {
        "law": "L(N, D) = E + A / N^alpha + B / D^beta, nats per token",
        "settings": {
            "huber_delta": settings.fit.delta,
            "objective": "sum over rows of the Huber loss of log predicted less log measured loss",
            "grid": settings.fit.grid,
            "shared_exponent": settings.fit.shared_exponent,
            "bootstrap": settings.resamples,
            "interval_level": LEVEL,
            "test_draws": settings.draws,
            "seed": settings.seed,
            "min_steps": settings.min_steps,
            "runs_of_fewer_steps": analysis.too_short,
            "hold_out": settings.held,
        },
        "families": families,
        "left_out": {
            left.name: {"reason": left.reason, "isoflop": _isoflop_dict(left.isoflop)}
            for left in analysis.left_out
        },
        "comparisons": [
            {
                "first": pair.first,
                "second": pair.second,
                "tests": [
                    {"hypothesis": t.hypothesis, "statistic": t.statistic, "p": t.p}
                    for t in pair.tests
                ],
                "difference_intervals": pair.differences,
            }
            for pair in analysis.pairs
        ],
    }
    known: dict[str, Any] = finite(figures)
    return known


def _family_dict(family: Family) -> dict[str, Any]:
    fitted, points, optimum, held = family.fit, family.points, family.optimum, family.held_out
    return fitted.law.as_dict() | {
        "objective": fitted.objective,
        "mean_error": family.error,
        "largest_error": family.worst,
        "rows": len(points),
        "runs": len(np.unique(points.run)),
        "params_range": [float(points.params.min()), float(points.params.max())],
        "tokens_range": [float(points.tokens.min()), float(points.tokens.max())],
        "descent": {
            "starts": fitted.starts,
            "starts_at_minimum": fitted.starts_at_minimum,
            "largest_gradient_over_delta": fitted.gradient,
            "longest": fitted.steps,
        },
        "warnings": fitted.warnings,
        "intervals": family.intervals,
        "verdict": _verdict_dict(family),
        "optimum": {
            "a": optimum.a,
            "b": optimum.b,
            "G": optimum.G,
            "flops_per_parameter_and_token": optimum.flops_per_pair,
        },
        "held_out": {"error": None, "note": family.held_out_note}
        if held is None
        else {
            "error": held.mean_error,
            "bias": held.bias,
            "error_on_fitted": held.fitted_error,
            "law": held.law.as_dict(),
            "rows": [
                {"params": n, "tokens": d, "loss": y, "predicted": predicted}
                for n, d, y, predicted in zip(
                    *(a.tolist() for a in (held.params, held.tokens, held.loss, held.predicted)),
                    strict=True,
                )
            ],
        },
        "isoflop": _isoflop_dict(family.isoflop),
        "extrapolations": [vars(e) | {"known": e.is_known} for e in family.extrapolations],
        "seed_spread": seed_spread(points),
        "by_min_steps": [
            {"min_steps": w.least, "runs": w.runs, "mean_error": w.error} | w.law.as_dict()
            for w in family.without_short
        ],
        "by_count": {
            name: other.law.as_dict() | {"objective": other.objective}
            for name, other in family.by_count.items()
        },
    }


def _verdict_dict(family: Family) -> dict[str, Any]:
    verdict, points = family.verdict, family.points
    columns = (points.params, points.tokens, points.loss)
    rows = zip(*(column[verdict.outliers].tolist() for column in columns), strict=True)
    return {
        "follows": verdict.follows,
        "reasons": list(verdict.reasons),
        "errors_run_with_size_p": verdict.trend,
        "outliers": [{"params": n, "tokens": d, "loss": y} for n, d, y in rows],
        "law_without_outliers": None if verdict.without is None else verdict.without.as_dict(),
    }


def _isoflop_dict(fits: IsoFlop) -> dict[str, Any]:
    return {
        "a": fits.a,
        "b": fits.b,
        "a_interval": fits.a_interval,
        "bias_taken_off": fits.bias,
        "note": fits.note,
        "minima": [{"flops": p.flops, "params": p.params, "loss": p.loss} for p in fits.minima],
    }
