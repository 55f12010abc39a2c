"""The law L(N, D) = E + A / N^alpha + B / D^beta, and its distance from runs (arXiv 2203.15556)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
STEEPEST = 3.0
"""Exponent beyond which a term is a step: it matters at the smallest size or shortest run only."""
LEAST_TERM = 1e-8
"""Share of the loss below which a term, at the runs' geometric mean N and D, counts as absent."""


@dataclass(frozen=True)
class Law:
    """Loss in nats per token, given N parameters and D tokens (arXiv 2203.15556, equation 2)."""

    E: float
    """Irreducible loss in nats per token, which no size and no data removes."""
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Return the nats per token of models of ``params`` parameters after ``tokens`` tokens."""
        n, d = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def as_dict(self) -> dict[str, float]:
        """Return the coefficients by name."""
        return {name: float(getattr(self, name)) for name in COEFFICIENTS}


@dataclass(frozen=True)
class Design:
    """A fit to be made: runs of one or more families, and the coefficients that their laws share.

    The objective is a function of free numbers phi (P,): for every family log E, log A', log B',
    alpha and beta, where A' and B' are the terms at the runs' geometric mean N and D. These remove
    the correlation of A with alpha, and of B with beta, from the descent; the minimum is the same.
    """

    params: np.ndarray
    """(n,) N."""
    tokens: np.ndarray
    """(n,) D."""
    loss: np.ndarray
    """(n,) nats per token."""
    family: np.ndarray
    """(n,) index 0, 1, ... of each run's family."""
    shared_exponent: bool = False
    """Whether alpha = beta in every law."""
    common: tuple[str, ...] = ()
    """Coefficients that all families have in common."""

    @cached_property
    def n_families(self) -> int:
        return int(self.family.max()) + 1

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Mean log N and mean log D of the runs."""
        return float(np.log(self.params).mean()), float(np.log(self.tokens).mean())

    @cached_property
    def places(self) -> np.ndarray:
        """(families, 5) indices into phi of each family's coefficients."""
        numbers: dict[tuple[str, int], int] = {}
        places = np.zeros((self.n_families, 5), int)
        for f in range(self.n_families):
            for i, name in enumerate(COEFFICIENTS):
                name = "alpha" if self.shared_exponent and name == "beta" else name
                key = (name, 0 if name in self.common else f)
                places[f, i] = numbers.setdefault(key, len(numbers))
        return places

    @cached_property
    def n_free(self) -> int:
        """P, the number of fitted numbers."""
        return int(self.places.max()) + 1

    @cached_property
    def terms(self) -> np.ndarray:
        """(3n, P) matrix: ``terms @ phi`` are the logs of E, A / N^alpha and B / D^beta, n each."""
        n = len(self.loss)
        rows, terms = np.arange(n), np.zeros((3, n, self.n_free))
        at = self.places[self.family]
        for term in range(3):
            terms[term, rows, at[:, term]] = 1
        terms[1, rows, at[:, 3]] -= np.log(self.params) - self.centre[0]
        terms[2, rows, at[:, 4]] -= np.log(self.tokens) - self.centre[1]
        return terms.reshape(3 * n, self.n_free)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) lower and upper bounds between which descents look for a law.

        Beyond the bounds, laws hardly differ: a term below :data:`LEAST_TERM` of the loss counts as
        absent, and an exponent past :data:`STEEPEST` makes a step. Where an unbounded descent along
        such a valley ends would depend on the last bit of a processor's arithmetic.
        """
        low, high = np.full(self.n_free, -STEEPEST), np.full(self.n_free, STEEPEST)
        for f in range(self.n_families):
            least = np.log(LEAST_TERM * self.loss[self.family == f].min())
            low[self.places[f, :3]], high[self.places[f, :3]] = least, np.inf
        return low, high

    def laws(self, phi: np.ndarray) -> list[Law]:
        """Return the law of each family at phi (P,)."""
        families = range(self.n_families)
        return [Law(*(float(c[0]) for c in self.coefficients(phi[None], f))) for f in families]

    def coefficients(self, phi: np.ndarray, family: int = 0) -> list[np.ndarray]:
        """Return a family's E, A, B, alpha and beta, (K,) each, at K points phi (K, P)."""
        e, a, b, alpha, beta = phi[:, self.places[family]].T
        with np.errstate(over="ignore"):
            # A = A' exp(alpha mean log N): back from the terms at the centre.
            big_a = np.exp(a + alpha * self.centre[0])
            big_b = np.exp(b + beta * self.centre[1])
        return [np.exp(e), big_a, big_b, alpha, beta]

    def phi(self, laws: list[Law]) -> np.ndarray:
        """Return phi (P,) of the given laws, the inverse of :meth:`laws`."""
        phi = np.zeros(self.n_free)
        for f, law in enumerate(laws):
            logs = np.log([law.E, law.A, law.B])
            logs[1:] -= np.array([law.alpha, law.beta]) * self.centre
            phi[self.places[f]] = [*logs, law.alpha, law.beta]
        return phi

    @cached_property
    def log_loss(self) -> np.ndarray:
        """(n,) logarithm of the measured losses."""
        return np.log(self.loss)

    def residuals(self, phi: np.ndarray, log_loss: np.ndarray | None = None) -> np.ndarray:
        """Return log of predicted over measured loss (K, n) at phi (K, P).

        ``log_loss`` (K, n) replaces the measured losses, for simulated data.
        """
        total = np.exp(phi @ self.terms.T).reshape(len(phi), 3, -1).sum(axis=1)
        return np.log(total) - (self.log_loss if log_loss is None else log_loss)

    def objective(
        self,
        phi: np.ndarray,
        delta: float,
        weights: np.ndarray | None = None,
        log_loss: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the summed Huber loss on log L (K,), with analytic gradient (K, P), at phi (K, P).

        Equation 3 of arXiv 2203.15556: Huber_delta(LSE(log E, log A - alpha log N, log B - beta log
        D) - log L), *summed* over runs. An average, of about 1e-6, would meet an optimizer's
        default tolerance at once, which ended the published fit early (arXiv 2404.10102).

        Args:
            phi: K points.
            delta: residual of log L at which the loss goes from squares to absolute values.
            weights: (K, n) how often each run counts, for a bootstrap; None: once.
            log_loss: (K, n) replaces the measured losses, for simulated data.
        """
        terms = np.exp(phi @ self.terms.T).reshape(len(phi), 3, -1)
        total = terms.sum(axis=1)
        r = np.log(total) - (self.log_loss if log_loss is None else log_loss)
        slope = np.clip(r, -delta, delta)
        huber = slope * (r - slope / 2)
        if weights is not None:
            huber, slope = huber * weights, slope * weights
        # The derivative of log L by the logarithm of a term is the term's share of L.
        terms *= (slope / total)[:, None, :]
        return huber.sum(axis=1), terms.reshape(len(phi), -1) @ self.terms
