"""The best size and data for a budget under a law (arXiv 2203.15556, section 3.3)."""

from dataclasses import dataclass

import numpy as np

from gam_scale.scaling.law import Law


@dataclass(frozen=True)
class Optimum:
    """The minimum of a law given C = k N D FLOPs: N* = G (C / k)^a and D* = (C / k)^b / G."""

    law: Law
    flops_per_pair: float
    """k: 6 for a dense model whose context costs little (arXiv 2001.08361, section 2.1)."""

    @property
    def exists(self) -> bool:
        """Whether both terms of the law fall; otherwise, no size is the best for a budget."""
        return self.law.alpha > 0 and self.law.beta > 0

    @property
    def a(self) -> float:
        """Exponent of N* in compute, beta / (alpha + beta)."""
        return self.law.beta / (self.law.alpha + self.law.beta)

    @property
    def b(self) -> float:
        """Exponent of D* in compute, alpha / (alpha + beta)."""
        return self.law.alpha / (self.law.alpha + self.law.beta)

    @property
    def G(self) -> float:
        """(alpha A / (beta B))^(1 / (alpha + beta)), equation 4 of arXiv 2203.15556."""
        law = self.law
        log = np.log(law.alpha) + np.log(law.A) - np.log(law.beta) - np.log(law.B)
        return float(np.exp(log / (law.alpha + law.beta)))

    def params(self, flops: float | np.ndarray) -> np.ndarray:
        """Return N* of a budget in FLOPs."""
        return self.G * (np.asarray(flops, float) / self.flops_per_pair) ** self.a

    def tokens(self, flops: float | np.ndarray) -> np.ndarray:
        """Return D* of a budget in FLOPs."""
        return (np.asarray(flops, float) / self.flops_per_pair) ** self.b / self.G

    def flops(self, params: float | np.ndarray) -> np.ndarray:
        """Return the budget in FLOPs for which ``params`` parameters are best."""
        return self.flops_per_pair * (np.asarray(params, float) / self.G) ** (1 / self.a)

    def loss(self, flops: float | np.ndarray) -> np.ndarray:
        """Return the nats per token of the best model of a budget in FLOPs."""
        return self.law.loss(self.params(flops), self.tokens(flops))
