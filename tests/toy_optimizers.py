"""Optimizers whose states have odd shapes and dtypes; ``train.optimizer`` "toys" uses them."""

import math

import torch

from gam_scale.checkpoint.shard import StateSpec
from gam_scale.parallel.algorithm import ADAMW, Algorithm
from gam_scale.parallel.optimizer import OPTIMIZERS


class Toy(torch.optim.Optimizer):
    """Steps each parameter by a subclass's ``update``, on the state that its ``made`` creates."""

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
        # Like torch's Muon, refuse parameters that an engine has flattened.
        assert all(p.dim() >= 2 for group in self.param_groups for p in group["params"])

    def made(self, p):
        return {kind: state.initial_tensor(p.device) for kind, state in _rowwise(p.shape).items()}

    def update(self, p, state, group):
        state["count"] += 1
        state["row"].lerp_(p.grad.square().flatten(1).mean(1), 0.1)
        fast, slow = state["averages"]
        fast.lerp_(p.grad, 0.5)
        slow.lerp_(p.grad, 0.05)
        # Column after column in memory, as matrix decompositions return their results.
        state["columns"] = p.grad.flatten(1).t().contiguous().t()
        update = (fast + slow + 0.1 * state["columns"].reshape(p.shape)) / (
            state["row"].view(-1, *[1] * (p.dim() - 1)).sqrt() + 1e-8
        )
        update /= update.norm() * state["count"].sqrt()  # norm of the whole matrix
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
    """Steps elementwise: it keeps a momentum in float64 and an integer count."""

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
    """Choose a parameter's algorithm by its role, as recipes do that treat matrices apart."""
    return {"matrix": ROWWISE, "vector": SIGNS}.get(policy.role, ADAMW)


OPTIMIZERS["toys"] = toys
