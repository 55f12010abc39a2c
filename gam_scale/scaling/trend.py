"""A test of whether the errors of a fit depend on size, so that the law bends where runs do not."""

import numpy as np

from gam_scale.scaling.fit import Fit

DRAWS = 999
FEW_RUNS = 10
"""Independent runs below which errors are simulated from normal noise: signs of so few say little.
With seven runs there are 64 different patterns of signs, half of which fit a curve well."""
SHARED = np.linspace(0.0, 0.95, 20)
"""Shares of the noise's variance that the rows of one run may have in common."""


def trend_with_size(fitted: Fit, run: np.ndarray, seed: int = 0) -> float:
    """Return p of the hypothesis that errors do not depend on size, against a curve over log N.

    The statistic is the share of the errors that (log N)^2 and (log N)^3 explain beyond what the
    law's own coefficients could. It is compared with that of :data:`DRAWS` sets of errors drawn
    under the hypothesis; see :func:`_signed` for many runs and :func:`_normal` for few.

    Args:
        fitted: fit to the runs of one family.
        run: (n,) equal numbers mark rows of one training run.
        seed: seed of the draws.
    """
    made = fitted.design
    logs = np.exp(fitted.phi @ made.terms.T).reshape(3, -1)
    share = logs / logs.sum(axis=0)
    tangent = np.einsum("tn,tnp->np", share, made.terms.reshape(3, -1, made.n_free))
    size = np.log(made.params)
    size = (size - size.mean()) / size.std()
    own = _basis(tangent)
    curve = np.stack([size**2, size**3], axis=1)
    curve = _basis(curve - own @ (own.T @ curve))
    errors = made.residuals(fitted.phi[None])[0]
    errors = errors - own @ (own.T @ errors)
    if curve.shape[1] == 0 or not np.any(np.abs(errors) > 1e-9):
        return 1.0
    runs, of_row = np.unique(run, return_inverse=True)
    rng = np.random.default_rng(seed)
    if len(runs) < FEW_RUNS:
        drawn = _normal(errors, np.hstack([own, curve]), of_row, rng)
    else:
        drawn = _signed(errors, of_row, rng)
    drawn -= (drawn @ own) @ own.T
    explained = _explained(drawn, curve)
    return (1 + int((explained >= _explained(errors[None], curve)[0] - 1e-9).sum())) / (DRAWS + 1)


def _signed(errors: np.ndarray, of_row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the errors (DRAWS, n) with random signs, one for the rows of each run.

    Under the hypothesis both signs of an error are equally likely (a wild bootstrap: Davidson and
    Flachaire 2008).
    """
    signs = rng.choice([-1.0, 1.0], size=(DRAWS, of_row.max() + 1))
    return np.asarray(errors * signs[:, of_row])


def _normal(
    errors: np.ndarray, fixed: np.ndarray, of_row: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return normal errors (DRAWS, n), part of which the rows of one run share.

    How large this part is follows from the errors beyond the law and the curve, in the basis
    ``fixed`` (n, p), so that a bend does not pass for noise between runs. So few runs tell it
    roughly, so each draw has a part of its own, drawn with the restricted likelihood as weight.
    Sizes with one run each hardly tell it at all: repeated seeds do.
    """
    likelihood = _likelihood(errors, fixed, of_row)
    part = rng.choice(SHARED, DRAWS, p=likelihood / likelihood.sum())[:, None]
    shared = rng.standard_normal((DRAWS, of_row.max() + 1))[:, of_row]
    own = rng.standard_normal((DRAWS, len(errors)))
    return np.asarray(np.sqrt(part) * shared + np.sqrt(1 - part) * own)


def _likelihood(errors: np.ndarray, fixed: np.ndarray, of_row: np.ndarray) -> np.ndarray:
    """Return the restricted likelihood of each of :data:`SHARED`, the largest being 1."""
    rest = np.linalg.svd(fixed)[0][:, fixed.shape[1] :]
    left = rest.T @ errors
    same = rest.T @ (of_row[:, None] == of_row) @ rest
    logs = []
    for part in SHARED:
        covariance = (1 - part) * np.eye(len(left)) + part * same
        square = max(float(left @ np.linalg.solve(covariance, left)), 1e-300)
        logs.append(-np.linalg.slogdet(covariance)[1] / 2 - len(left) / 2 * np.log(square))
    return np.asarray(np.exp(np.array(logs) - max(logs)))


def _explained(errors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return the share (K,) of the squared errors (K, n) in the span of ``basis`` (n, m)."""
    return ((errors @ basis) ** 2).sum(axis=1) / np.maximum((errors**2).sum(axis=1), 1e-300)


def _basis(columns: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (n, m) of the span of columns (n, p).

    Directions that exist by rounding alone are left out.
    """
    left, scale, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, scale > 1e-8 * max(float(scale.max()), 1e-300)]
