"""Optimizers whose states have odd shapes and dtypes, to be had as ``train.optimizer``."""

import math

import torch

from gam_scale.checkpoint.shard import StateSpec
from gam_scale.parallel.algorithm import ADAMW, Algorithm
from gam_scale.parallel.optimizer import OPTIMIZERS


class Toy(torch.optim.Optimizer):
    """Steps each parameter by :meth:`update`, whose first state :meth:`made` makes."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:
                        self.state[p].update(self.made(p))
                    self.update(p, self.state[p], group)


class Rowwise(Toy):
    """Needs whole matrices: it keeps a number per row, two averages, a gradient and a count."""

    def __init__(self, groups: list[dict]) -> None:
        super().__init__(groups)
        # As torch's Muon, which refuses what an engine has flattened.
        assert all(p.dim() >= 2 for group in self.param_groups for p in group["params"])

    def made(self, p):
        return {kind: state.initial_tensor(p.device) for kind, state in _rowwise(p.shape).items()}

    def update(self, p, state, group):
        state["count"] += 1
        state["row"].lerp_(p.grad.square().flatten(1).mean(1), 0.1)
        fast, slow = state["averages"]
        fast.lerp_(p.grad, 0.5)
        slow.lerp_(p.grad, 0.05)
        # As decompositions return theirs, one column after another.
        state["columns"] = p.grad.flatten(1).t().contiguous().t()
        update = (fast + slow + 0.1 * state["columns"].reshape(p.shape)) / (
            state["row"].view(-1, *[1] * (p.dim() - 1)).sqrt() + 1e-8
        )
        update /= update.norm() * state["count"].sqrt()  # of the whole matrix
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


def _rowwise(shape):
    whole = tuple(shape)
    return {
        "count": StateSpec((), torch.int64),
        "row": StateSpec((whole[0],), initial=1.0),
        "averages": StateSpec((2, *whole)),
        "columns": StateSpec((whole[0], math.prod(whole[1:]))),
    }


class Signs(Toy):
    """Elementwise: a momentum in float64 and a count, an int."""

    def made(self, p):
        count = torch.zeros((), dtype=torch.int64, device=p.device)
        return {"count": count, "momentum": torch.zeros_like(p, dtype=torch.float64)}

    def update(self, p, state, group):
        state["count"] += 1
        state["momentum"].lerp_(p.grad.double(), 0.2)
        rate = group["lr"] / state["count"].item()
        p.sub_(rate * torch.tanh(10 * state["momentum"]).float())


ROWWISE = Algorithm(lambda groups, train: Rowwise(groups), _rowwise, elementwise=False)
SIGNS = Algorithm(
    lambda groups, train: Signs(groups),
    lambda shape: {
        "count": StateSpec((), torch.int64),
        "momentum": StateSpec(shape, torch.float64),
    },
    elementwise=True,
)


def toys(policy):
    """All three at once, as recipes with an algorithm of their own for matrices have it."""
    return {"matrix": ROWWISE, "vector": SIGNS}.get(policy.role, ADAMW)


OPTIMIZERS["toys"] = toys
