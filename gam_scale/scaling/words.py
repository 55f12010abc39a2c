"""Sentences on what a set of runs shows and does not show."""

import math

from gam_scale.report.numbers import general, large, ranged, scientific, times
from gam_scale.scaling.analysis import Analysis, Family, Pair
from gam_scale.scaling.columns import named_count, other_counts
from gam_scale.scaling.extrapolation import ASKED, OPTIMAL, PER_PARAMETER, UNKNOWN, Extrapolation
from gam_scale.scaling.points import UNNAMED
from gam_scale.scaling.seeds import seed_spread
from gam_scale.scaling.standing import Standing, standings
from gam_scale.scaling.verdict import OUTLYING

SIGNIFICANT = 0.05
MOST_OUTLIERS = 5  # most outliers that a sentence names
SAME_EXPONENT = 0.02
"""Difference below which two exponents count as the same."""
MOST_PAIRS = 6
"""Number of comparisons up to which each has a sentence."""


def shows(analysis: Analysis) -> list[str]:
    """Return sentences on what the runs show, beginning with the best of several families."""
    sentences = [best(analysis)] if len(analysis.measured) > 1 else []
    for family in analysis.families:
        sentences += [_law(family), *_outliers(family), _optimum(family)]
        if family.held_out is not None:
            sentences.append(_held_out(family))
        sentences += [
            _extrapolation(family, e)
            for e in family.extrapolations
            if e.rule != PER_PARAMETER and e.is_known
        ]
    if len(analysis.pairs) > MOST_PAIRS:
        return [*sentences, _pairs(analysis.pairs)]
    return sentences + [_pair(pair) for pair in analysis.pairs]


def does_not_show(analysis: Analysis) -> list[str]:
    """Return sentences on what the runs do not show, and what the figures assume."""
    families = analysis.families
    biggest = max(float(points.params.max()) for _, points in analysis.measured)
    far = [t for t in analysis.settings.targets if t > biggest]
    sentences = []
    if far:
        reach = ", ".join(f"{large(t)} is {times(t / biggest)} that" for t in far)
        sentences.append(
            f"No model of more than {large(biggest)} parameters was trained; {reach}. Figures "
            "beyond the runs hold only if the same law does."
        )
    sentences.append(
        "The intervals say how much the noise between runs moves the fit. They do not cover a law "
        "of the wrong form, learning rates or schedules that suit one size better than another, "
        "other data, or another tokenizer."
    )
    sentences.append(_count(analysis))
    if analysis.settings.min_steps:
        sentences.append(
            f"{analysis.too_short:,} runs of fewer than {analysis.settings.min_steps:,} steps are "
            "left out, as asked."
        )
    for left in analysis.left_out:
        sentences.append(f"{left.name} is measured but has no law here. {_sentence(left.reason)}.")
        if left.isoflop.note:
            sentences.append(f"{left.name}: {left.isoflop.note}")
    for family in families:
        sentences += _limits(family, analysis)
    if not analysis.settings.resamples:
        sentences.append("Intervals were not asked for, so nothing says how sure the figures are.")
    if not families[0].points.counted:
        sentences.append("FLOPs were not given and are taken as 6 N D, which leaves out attention.")
    sentences += [
        "Every token is taken to be new to the model; repeated data is worth less.",
        "GPU-hours assume a share of the data sheet's rate; failures, evaluation, tuning and "
        "whether the model fits on the GPU are left out.",
        "A lower loss is not a measured ability: recall, context and use need tests of their own.",
    ]
    return sentences


def _limits(family: Family, analysis: Analysis) -> list[str]:
    """Return sentences on what the runs of one family do not show."""
    name = _named(family, analysis.families)
    sentences = [f"{name}{_upper(warning, name)}." for warning in family.fit.warnings]
    if family.held_out is None:
        sentences.append(
            f"{name}{_upper('prediction of larger models was not tested', name)}: "
            f"{family.held_out_note}."
        )
    lost = [e for e in family.extrapolations if e.rule == OPTIMAL and not e.is_known]
    if lost:
        sizes = " and ".join(large(e.params) for e in lost)
        sentences.append(
            f"{name}{_upper('how many tokens a model of', name)} {sizes} parameters would want "
            f"is unknown: the interval spans more than a factor of {scientific(UNKNOWN)}."
        )
    if family.isoflop.note:
        sentences.append(f"{name}{_upper(family.isoflop.note, name)}")
    if apart := _exponents(family):
        sentences.append(f"{name}{_upper(apart, name)}")
    if analysis.settings.resamples and family.intervals["a"] is None:
        sentences.append(
            f"{name}{_upper('refits to reweighted runs often have no optimum', name)}, so its "
            "exponents have no interval."
        )
    return sentences


def _who(family: Family) -> str:
    """Return how a sentence names the family; without a column family, ``a model``."""
    return "a model" if family.name == UNNAMED else family.name


def _named(family: Family, families: list[Family]) -> str:
    return f"{family.name}: " if len(families) > 1 else ""


def _upper(text: str, before: str) -> str:
    return text if before or text[:2] == "E " else text[:1].upper() + text[1:]


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def best(analysis: Analysis) -> str:
    """Return a sentence on which family is best at each budget, as measured, not fitted."""
    found = standings(analysis.measured)
    if not found:
        return "No two families were measured at one budget, so nothing says which is best."
    leaders = list(dict.fromkeys(s.best[0].name for s in found))
    if len(leaders) == 1 and len(found) > 1:
        ahead = ", ".join(f"{s.best[0].loss:.3f} at {_budget(s)}" for s in found)
        return (
            f"{leaders[0]} has the least measured loss at every budget, in nats per token: {ahead}."
        )
    each = "; ".join(map(_leader, found))
    return f"The least measured loss at each budget, in nats per token: {each}."


def _budget(standing: Standing) -> str:
    first, second = standing.best[:2]
    behind = (
        f"{second.name} is {standing.margin:.3f} behind"
        if standing.margin >= 5e-4
        else f"{second.name} has the same"
    )
    if standing.within_spread:
        behind += ", within the seeds' spread"
    return f"{scientific(standing.flops)} FLOPs ({large(first.params)} parameters; {behind})"


def _leader(standing: Standing) -> str:
    first = standing.best[0]
    return f"{first.name} {first.loss:.3f} at {_budget(standing)}"


def _count(analysis: Analysis) -> str:
    """Return a sentence on what N counts."""
    points = analysis.measured[0][1]
    column, others = named_count(points), other_counts(points)
    also = f"; a table has the laws by {', '.join(others)} too" if others else ""
    if column:
        return f"N counts {column.replace('_', ' ').replace('params', 'parameters')}{also}."
    return (
        "What N counts is up to the column params: whether with embeddings or without moves the "
        f"exponents of small models{also}."
    )


def _exponents(family: Family) -> str:
    """Return how the exponents by the law and by isoFLOP minima differ; empty if they agree."""
    fits, a = family.isoflop, family.optimum.a
    if fits.a is None or abs(fits.a - a) < SAME_EXPONENT:
        return ""
    ends, own = fits.a_interval, family.intervals["a"]
    if ends and own:
        apart = ends[0] > own[1] or own[0] > ends[1]
        told = (
            "their intervals do not meet, so one of the two is biased"
            if apart
            else "their intervals meet, so the runs do not say which is nearer"
        )
    else:
        told = "without both intervals nothing says which is nearer"
    return (
        f"the best size grows as C^{a:.3f} by the law and as C^{fits.a:.3f} by isoFLOP minima: "
        f"{told}. The law takes all runs and the form E + A / N^alpha + B / D^beta; the minima "
        "take the runs about the best size of each budget, and no form."
    )


def _noise(family: Family) -> str:
    spread = seed_spread(family.points)
    return "" if spread is None else f", where seeds differ by {spread:.2%} (standard deviation)"


def _whose(family: Family) -> str:
    return "the" if family.name == UNNAMED else f"{family.name}'s"


def _pairs(pairs: list[Pair]) -> str:
    """Return a sentence on many comparisons, at a level that allows for their number."""
    level = SIGNIFICANT / len(pairs)
    apart = [pair for pair in pairs if pair.tests[0].p <= level]
    least = 1 / (1 + max(pair.tests[0].draws for pair in pairs))
    if least > level:  # no p reaches the level, even if no simulated data differ as much
        most = [pair for pair in pairs if pair.tests[0].p <= least]
        return (
            f"Of {len(pairs)} pairs of families {len(most)} differ more than all data simulated "
            f"under one law, p <= {general(least, 2)}; which of them follow different laws at a "
            f"level that allows for their number takes --test-draws {math.ceil(1 / level) - 1}."
        )
    return (
        f"Of {len(pairs)} pairs of families {len(apart)} follow different laws at p <= "
        f"{general(level, 2)}, which allows for their number; the table of comparisons has each."
    )


def _law(family: Family) -> str:
    law, points = family.fit.law, family.points
    name = "" if family.name == UNNAMED else f"{family.name}: "
    return (
        f"{name}{len(points)} measured losses of models of {large(points.params.min())} "
        f"to {large(points.params.max())} parameters {_follow(family)} {law.E:.3f} + "
        f"{general(law.A, 4)} / N^{law.alpha:.3f} + {general(law.B, 4)} / D^{law.beta:.3f} within "
        f"{family.error:.2%} on average and {family.worst:.2%} at worst{_noise(family)}"
        f"{_why_not(family)}."
    )


def _follow(family: Family) -> str:
    return "follow" if family.verdict.follows else "do not follow the nearest law,"


def _why_not(family: Family) -> str:
    return "".join(f"; {reason}" for reason in family.verdict.reasons)


def _outliers(family: Family) -> list[str]:
    """Return a sentence on the runs that are far from the law, and on the law without them."""
    verdict, points = family.verdict, family.points
    if not len(verdict.outliers):
        return []
    runs = [
        f"{large(points.params[i])} parameters on {large(points.tokens[i])} tokens "
        f"({points.loss[i]:.3f})"
        for i in verdict.outliers[:MOST_OUTLIERS]
    ]
    more = len(verdict.outliers) - len(runs)
    rest, law = "the others have no law", verdict.without
    if law is not None:
        rest = (
            f"without them the law is {law.E:.3f} + {general(law.A, 4)} / N^{law.alpha:.3f} + "
            f"{general(law.B, 4)} / D^{law.beta:.3f}"
        )
    name = "" if family.name == UNNAMED else f"{family.name}: "
    listed = ", ".join([*runs, f"{more} more"] if more else runs)
    return [
        f"{name}{len(verdict.outliers)} of {len(points)} losses are further than {OUTLYING:g} "
        f"robust deviations from the law: {listed}; {rest}."
    ]


def _optimum(family: Family) -> str:
    o = family.optimum
    larger, longer = general(10**o.a, 2), general(10**o.b, 2)
    a = ranged(o.a, family.intervals["a"])
    return _beyond(
        family,
        f"with ten times the compute, {_who(family)} is best {larger} times larger and trained "
        f"on {longer} times the tokens (a = {a}).",
    )


def _beyond(family: Family, said: str, *, with_name: bool = False) -> str:
    """Return what the law says beyond the runs, on a condition where they do not follow it.

    ``with_name`` is whether ``said`` begins with the family's name, which keeps its case.
    """
    if not family.verdict.follows:
        return f"If the law holds, {said}"
    return said if with_name else _sentence(said)


def _held_out(family: Family) -> str:
    held = family.held_out
    assert held is not None
    much = "too high" if held.bias > 0 else "too low"
    whose = "the law" if family.name == UNNAMED else f"{family.name}'s law"
    return (
        f"Fitted without {held.description}, {whose} is off by {held.mean_error:.2%} "
        f"on them on average ({abs(held.bias):.2%} {much}), against {held.fitted_error:.2%} on the "
        "runs it was fitted to."
    )


def _extrapolation(family: Family, e: Extrapolation) -> str:
    who = _who(family)
    if e.rule == ASKED:
        return _beyond(
            family,
            f"one run of {large(e.params)} parameters, trained on {large(e.tokens)} tokens, would "
            f"reach {ranged(e.loss, e.shown_interval)} nats per token under {_whose(family)} law.",
        )
    return _beyond(
        family,
        f"{who} of {large(e.params)} parameters would want "
        f"{ranged(e.tokens, e.tokens_interval, large)} tokens and {scientific(e.flops)} FLOPs, and "
        f"reach {ranged(e.loss, e.loss_interval)} nats per token.",
        with_name=family.name != UNNAMED,
    )


def _pair(pair: Pair) -> str:
    one, exponents = pair.tests
    names = f"{pair.first} and {pair.second}"
    if one.p > SIGNIFICANT:
        return (
            f"{names} may follow one law: noise alone gives as large a difference with probability "
            f"{general(one.p, 2)}."
        )
    again = (
        f"also in how fast it falls (exponents: p = {general(exponents.p, 2)})"
        if exponents.p <= SIGNIFICANT
        else f"but not demonstrably in their exponents (p = {general(exponents.p, 2)})"
    )
    return f"{names} follow different laws (p = {general(one.p, 2)}), {again}."
