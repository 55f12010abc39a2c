"""Test whether two families follow different laws, or noise makes one law look like two."""

from dataclasses import dataclass

import numpy as np

from gam_scale.scaling.bootstrap import CLOSE, Bootstrap
from gam_scale.scaling.fit import Fit, FitSettings, descend, fit
from gam_scale.scaling.law import COEFFICIENTS, Law
from gam_scale.scaling.points import Points

DRAWS = 500
HYPOTHESES = {
    "one law": COEFFICIENTS,
    "equal exponents": ("alpha", "beta"),
}


@dataclass(frozen=True)
class Test:
    """A simulated likelihood-ratio test of a hypothesis on what two families have in common."""

    hypothesis: str
    statistic: float
    """2 n log of the ratio of the objective with common coefficients to that without."""
    p: float
    """Share of data sets simulated under the hypothesis with at least as large a statistic."""
    draws: int


def compare(
    first: Points,
    second: Points,
    settings: FitSettings,
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Test]:
    """Test each of :data:`HYPOTHESES` on two families.

    Both families are fitted apart and with coefficients in common. The drop in the summed Huber
    loss is compared with the drop in simulated data sets: the common fit plus each run's residual
    times a random sign, of mean 0 and variance 1 (a wild bootstrap: Mammen 1993). Rows of one run
    share the sign. The only assumption about the noise is that it is symmetric.
    """
    joint = _join(first, second)
    apart = fit(joint, settings)
    return [
        _test(name, joint, apart, common, settings, draws, seed)
        for name, common in HYPOTHESES.items()
    ]


def differences(first: Bootstrap, second: Bootstrap) -> dict[str, tuple[float, float] | None]:
    """Return intervals of the second family's coefficients and ``a`` minus the first's.

    The refits of the two families are independent, as their runs are.
    """
    degrees_of_freedom = min(first.degrees_of_freedom, second.degrees_of_freedom)
    error_to_residual = max(first.error_to_residual or 0, second.error_to_residual or 0) or None
    intervals: dict[str, tuple[float, float] | None] = {}
    for name in (*COEFFICIENTS, "a"):
        one, two = (np.array([_value(r[0], name) for r in b.laws]) for b in (first, second))
        both = Bootstrap(first.laws, first.objective, degrees_of_freedom, error_to_residual)
        intervals[name] = both.between(two - one)
    return intervals


def _value(law: Law, name: str) -> float:
    if name != "a":
        return float(getattr(law, name))
    return law.beta / (law.alpha + law.beta) if law.alpha > 0 and law.beta > 0 else float("nan")


def _join(first: Points, second: Points) -> Points:
    both = zip(
        (first.params, first.tokens, first.loss, first.flops, first.run),
        (second.params, second.tokens, second.loss, second.flops, second.run + first.run.max() + 1),
        strict=True,
    )
    n, d, loss, flops, run = (np.concatenate(pair) for pair in both)
    names = ("first",) * len(first) + ("second",) * len(second)
    return Points(n, d, loss, flops, names, run, first.counted)


def _test(
    name: str,
    joint: Points,
    apart: Fit,
    common: tuple[str, ...],
    settings: FitSettings,
    draws: int,
    seed: int,
) -> Test:
    null = fit(joint, settings, common)
    if null.objective <= 0 or apart.objective <= 0:
        return Test(name, 0.0, 1.0, 0)
    statistic = _statistic(null.objective, apart.objective, len(joint))
    rng = np.random.default_rng(seed)
    runs, of_row = np.unique(joint.run, return_inverse=True)
    # Residuals of the fit under the hypothesis simulate it best (Davidson and MacKinnon 1999). They
    # are scaled up, because fitted numbers make residuals smaller than the noise.
    residuals = null.design.residuals(null.phi[None])[0]
    noise = -residuals * np.sqrt(len(joint) / max(1, len(joint) - null.design.n_free))
    expected = np.log(joint.loss) + residuals
    signs = rng.choice([-1.0, 1.0], size=(draws, len(runs)))[:, of_row]
    simulated = expected + noise * signs
    likelihoods = []
    for fitted in (null, apart):
        # The simulated data come from the common fit, so both descents begin there.
        start = fitted.design.phi(null.laws)
        end = descend(
            fitted.design,
            settings.delta,
            np.tile(start, (draws, 1)),
            log_loss=simulated,
            inverse=np.tile(fitted.inverse[:1], (draws, 1, 1)),
            flat=CLOSE,
        )
        likelihoods.append(end.value * settings.delta)
    simulated_statistics = _statistic(likelihoods[0], likelihoods[1], len(joint))
    p = (1 + int((simulated_statistics >= statistic).sum())) / (draws + 1)
    return Test(name, float(statistic), p, draws)


def _statistic(common: np.ndarray | float, apart: np.ndarray | float, rows: int) -> np.ndarray:
    """Return 2 n log of the objectives' ratio: twice the log likelihood ratio for Laplace noise.

    That is the noise whose likelihood a Huber loss of small delta stands for.
    """
    return 2 * rows * np.log(np.asarray(common) / np.maximum(apart, 1e-300))
