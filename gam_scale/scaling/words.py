"""What a set of runs shows and does not show, in sentences."""

from gam_scale.report.numbers import large, ranged, scientific, times
from gam_scale.scaling.analysis import Analysis, Extrapolation, Family, Pair
from gam_scale.scaling.points import UNNAMED
from gam_scale.scaling.verdict import OUTLYING

SIGNIFICANT = 0.05
MOST_OUTLIERS = 5  # that a sentence names
UNKNOWN = 1e4  # an interval wider than this factor says nothing


def _determined(e: Extrapolation) -> bool:
    ends = e.tokens_interval
    return ends is None or ends[1] <= UNKNOWN * ends[0]


def shows(analysis: Analysis) -> list[str]:
    """What the runs show, in plain sentences."""
    sentences = [_largest(analysis)] if len(analysis.measured) > 1 else []
    for family in analysis.families:
        sentences += [_law(family), *_outliers(family), _optimum(family)]
        if family.held_out is not None:
            sentences.append(_held_out(family))
        sentences += [
            _extrapolation(family, e)
            for e in family.extrapolations
            if e.rule == "optimal" and _determined(e)
        ]
    return sentences + [_pair(pair) for pair in analysis.pairs]


def does_not_show(analysis: Analysis) -> list[str]:
    """What the runs do not show, and what the figures assume."""
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
    """What the runs of one family do not show."""
    name = _named(family, analysis.families)
    sentences = [f"{name}{_upper(warning, name)}." for warning in family.fit.warnings]
    if family.held_out is None:
        sentences.append(
            f"{name}{_upper('prediction of larger models was not tested', name)}: "
            f"{family.held_out_note}."
        )
    lost = [e for e in family.extrapolations if e.rule == "optimal" and not _determined(e)]
    if lost:
        sizes = " and ".join(large(e.params) for e in lost)
        sentences.append(
            f"{name}{_upper('how many tokens a model of', name)} {sizes} parameters would want "
            f"is unknown: the interval spans more than a factor of {scientific(UNKNOWN)}."
        )
    if family.isoflop.note:
        sentences.append(f"{name}{_upper(family.isoflop.note, name)}")
    if analysis.settings.resamples and family.intervals["a"] is None:
        sentences.append(
            f"{name}{_upper('refits to reweighted runs often have no optimum', name)}, so its "
            "exponents have no interval."
        )
    return sentences


def _who(family: Family) -> str:
    """The family in a sentence; runs without a column family have no name."""
    return "a model" if family.name == UNNAMED else family.name


def _named(family: Family, families: list[Family]) -> str:
    return f"{family.name}: " if len(families) > 1 else ""


def _upper(text: str, before: str) -> str:
    return text if before or text[:2] == "E " else text[:1].upper() + text[1:]


def _sentence(reason: str) -> str:
    return reason[:1].upper() + reason[1:]


def _largest(analysis: Analysis) -> str:
    """Measured, not fitted: each family's largest model on its largest budget, the best first."""
    ends = []
    for name, points in analysis.measured:
        i = max(range(len(points)), key=lambda i: (points.params[i], points.tokens[i]))
        size, budget = large(points.params[i]), large(points.tokens[i])
        ends.append((points.loss[i], f"{name} {points.loss[i]:.3f} ({size}, {budget})"))
    return (
        "Measured losses of the largest models on their largest budgets (parameters, tokens), in "
        f"nats per token: {', '.join(text for _, text in sorted(ends))}."
    )


def _law(family: Family) -> str:
    law, points = family.fit.law, family.points
    name = "" if family.name == UNNAMED else f"{family.name}: "
    return (
        f"{name}{len(points)} measured losses of models of {large(points.params.min())} "
        f"to {large(points.params.max())} parameters {_follow(family)} {law.E:.3f} + "
        f"{law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f} within "
        f"{family.error:.2%} on average and {family.worst:.2%} at worst{_why_not(family)}."
    )


def _follow(family: Family) -> str:
    return "follow" if family.verdict.follows else "do not follow the nearest law,"


def _why_not(family: Family) -> str:
    return "".join(f"; {reason}" for reason in family.verdict.reasons)


def _outliers(family: Family) -> list[str]:
    """Which runs are far from the law, and what it is without them."""
    verdict, points = family.verdict, family.points
    if not len(verdict.outliers):
        return []
    runs = [
        f"{large(points.params[i])} parameters on {large(points.tokens[i])} tokens "
        f"({points.loss[i]:.3f})"
        for i in verdict.outliers[:MOST_OUTLIERS]
    ]
    more = len(verdict.outliers) - len(runs)
    rest, law = "too few others remain for a law", verdict.without
    if law is not None:
        rest = (
            f"without them the law is {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + "
            f"{law.B:.4g} / D^{law.beta:.3f}"
        )
    name = "" if family.name == UNNAMED else f"{family.name}: "
    listed = ", ".join([*runs, f"{more} more"] if more else runs)
    return [
        f"{name}{len(verdict.outliers)} of {len(points)} losses are further than {OUTLYING:g} "
        f"robust deviations from the law: {listed}; {rest}."
    ]


def _optimum(family: Family) -> str:
    o = family.optimum
    ten = 10**o.a, 10**o.b
    a = ranged(o.a, family.intervals["a"])
    return (
        f"With ten times the compute, {_who(family)} is best {ten[0]:.2g} times larger and trained "
        f"on {ten[1]:.2g} times the tokens (a = {a})."
    )


def _held_out(family: Family) -> str:
    held = family.held_out
    assert held is not None
    much = "too high" if held.bias > 0 else "too low"
    whose = "the law" if family.name == UNNAMED else f"{family.name}'s law"
    return (
        f"Fitted without the largest models, {whose} is off by {held.mean_error:.2%} "
        f"on them on average ({abs(held.bias):.2%} {much}), against {held.fitted_error:.2%} on the "
        "runs it was fitted to."
    )


def _extrapolation(family: Family, e: Extrapolation) -> str:
    who = _who(family)
    return (
        f"{who[0].upper() if who == 'a model' else who[0]}{who[1:]} of {large(e.params)} "
        f"parameters would want {ranged(e.tokens, e.tokens_interval, large)} tokens and "
        f"{scientific(e.flops)} FLOPs, and reach {ranged(e.loss, e.loss_interval)} nats per token."
    )


def _pair(pair: Pair) -> str:
    one, exponents = pair.tests
    names = f"{pair.first} and {pair.second}"
    if one.p > SIGNIFICANT:
        return (
            f"{names} may follow one law: noise alone gives as large a difference with probability "
            f"{one.p:.2g}."
        )
    again = (
        f"also in how fast it falls (exponents: p = {exponents.p:.2g})"
        if exponents.p <= SIGNIFICANT
        else f"but not demonstrably in their exponents (p = {exponents.p:.2g})"
    )
    return f"{names} follow different laws (p = {one.p:.2g}), {again}."
