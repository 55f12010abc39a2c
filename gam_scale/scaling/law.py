"""L(N, D) = E + A / N^alpha + B / D^beta, and how far a law is from the runs (arXiv 2203.15556)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

COEFFICIENTS = ("E", "A", "B", "alpha", "beta")
STEEPEST = 3.0
"""Exponent beyond which a term is a step: all of it at the smallest size, or the shortest run."""
LEAST_TERM = 1e-8
"""Share of the loss below which a term, at the middle of the runs, is none."""


@dataclass(frozen=True)
class Law:
    """Loss in nats per token against N parameters and D tokens (arXiv 2203.15556, equation 2)."""

    E: float
    """Nats per token that no size and no data removes."""
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Nats per token of models of so many parameters after so many tokens."""
        n, d = np.asarray(params, float), np.asarray(tokens, float)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def as_dict(self) -> dict[str, float]:
        """The coefficients by name."""
        return {name: float(getattr(self, name)) for name in COEFFICIENTS}


@dataclass(frozen=True)
class Design:
    """Runs of one or more families, and which coefficients their laws share.

    The objective works on free numbers phi (P,): for every family log E, log A', log B', alpha and
    beta, where A' and B' are the terms at the runs' geometric mean N and D. That takes the
    correlation of A with alpha, and of B with beta, out of the descent; the minimum is the same.
    """

    params: np.ndarray
    """(n,) N."""
    tokens: np.ndarray
    """(n,) D."""
    loss: np.ndarray
    """(n,) nats per token."""
    family: np.ndarray
    """(n,) 0, 1, ...: whose law the run tells of."""
    shared_exponent: bool = False
    """Whether alpha = beta in every law."""
    common: tuple[str, ...] = ()
    """Coefficients that all families have in common."""

    @cached_property
    def n_families(self) -> int:
        return int(self.family.max()) + 1

    @cached_property
    def centre(self) -> tuple[float, float]:
        """Mean log N and mean log D."""
        return float(np.log(self.params).mean()), float(np.log(self.tokens).mean())

    @cached_property
    def places(self) -> np.ndarray:
        """(families, 5): where in phi each family's coefficients are."""
        numbers: dict[tuple[str, int], int] = {}
        places = np.zeros((self.n_families, 5), int)
        for f in range(self.n_families):
            for i, name in enumerate(COEFFICIENTS):
                name = "alpha" if self.shared_exponent and name == "beta" else name
                key = (name, 0 if name in self.common else f)
                places[f, i] = numbers.setdefault(key, len(numbers))
        return places

    @cached_property
    def free(self) -> int:
        """P, how many numbers are fitted."""
        return int(self.places.max()) + 1

    @cached_property
    def terms(self) -> np.ndarray:
        """(3n, P): ``terms @ phi`` are the logarithms of E, A / N^alpha and B / D^beta, n each."""
        n = len(self.loss)
        rows, terms = np.arange(n), np.zeros((3, n, self.free))
        at = self.places[self.family]
        for term in range(3):
            terms[term, rows, at[:, term]] = 1
        terms[1, rows, at[:, 3]] -= np.log(self.params) - self.centre[0]
        terms[2, rows, at[:, 4]] -= np.log(self.tokens) - self.centre[1]
        return terms.reshape(3 * n, self.free)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(P,) least and largest values between which descents look for a law.

        Beyond, every law is as good as the next: a term of less than :data:`LEAST_TERM` of the loss
        is none, and an exponent past :data:`STEEPEST` is a step. Where an unbounded descent along
        such a valley ends depends on the last bit of a processor's arithmetic.
        """
        low, high = np.full(self.free, -STEEPEST), np.full(self.free, STEEPEST)
        for f in range(self.n_families):
            least = np.log(LEAST_TERM * self.loss[self.family == f].min())
            low[self.places[f, :3]], high[self.places[f, :3]] = least, np.inf
        return low, high

    def laws(self, phi: np.ndarray) -> list[Law]:
        """The law of each family at phi (P,)."""
        families = range(self.n_families)
        return [Law(*(float(c[0]) for c in self.coefficients(phi[None], f))) for f in families]

    def coefficients(self, phi: np.ndarray, family: int = 0) -> list[np.ndarray]:
        """E, A, B, alpha and beta, (K,) each, at K points phi (K, P)."""
        e, a, b, alpha, beta = phi[:, self.places[family]].T
        with np.errstate(over="ignore"):
            # A = A' exp(alpha mean log N): back from the terms at the centre.
            big_a = np.exp(a + alpha * self.centre[0])
            big_b = np.exp(b + beta * self.centre[1])
        return [np.exp(e), big_a, big_b, alpha, beta]

    def phi(self, laws: list[Law]) -> np.ndarray:
        """(P,) that stands for these laws, the inverse of :meth:`laws`."""
        phi = np.zeros(self.free)
        for f, law in enumerate(laws):
            logs = np.log([law.E, law.A, law.B])
            logs[1:] -= np.array([law.alpha, law.beta]) * self.centre
            phi[self.places[f]] = [*logs, law.alpha, law.beta]
        return phi

    @cached_property
    def log_loss(self) -> np.ndarray:
        """(n,)"""
        return np.log(self.loss)

    def residuals(self, phi: np.ndarray, log_loss: np.ndarray | None = None) -> np.ndarray:
        """log of the predicted over the measured loss (K, n) at phi (K, P).

        ``log_loss`` (K, n) stands in for the measured ones, for simulated data.
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
        """Summed Huber loss on log L (K,) and its analytic gradient (K, P) at phi (K, P).

        Equation 3 of arXiv 2203.15556: Huber_delta(LSE(log E, log A - alpha log N, log B - beta log
        D) - log L), *summed* over runs. Averaged, values of 1e-6 meet an optimizer's default
        tolerance at once, which is what ended the published fit early (arXiv 2404.10102).

        Args:
            phi: K points.
            delta: where the loss goes from squares to absolute values, in log L.
            weights: (K, n) how often each run counts, for a bootstrap; None: once.
            log_loss: (K, n) in place of the measured ones, for simulated data.
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
