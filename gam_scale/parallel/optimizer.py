"""One optimizer for all parameters, in groups that each have their own algorithm and settings."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gam_scale.checkpoint.shard import StateSpec
from gam_scale.config import RunConfig, TrainConfig
from gam_scale.errors import UserError
from gam_scale.model.lm import outline
from gam_scale.model.policy import Policy, policies
from gam_scale.parallel.algorithm import ADAMW, Algorithm, Group, check_kept
from gam_scale.parallel.muon import MUON
from gam_scale.parallel.whole import Piece, WholeStepper, owners_of


class GroupedOptimizer(torch.optim.Optimizer):
    """Steps each group of parameters by the group's own algorithm.

    Beside torch's own keys each group has ``algorithm``; the lists ``names`` (in the model),
    ``shapes`` (of the whole parameters) and ``stacks`` (of matrices, see
    :attr:`gam_scale.model.policy.Policy.stack`), with one entry for each parameter; and
    ``lr_multiplier``, a factor of the run's learning rate.

    Attributes:
        found_inf: a scalar on the device; if not 0, the next step changes nothing.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[Group], train: TrainConfig) -> None:
        super().__init__(groups, {"lr": train.lr})
        for number, group in enumerate(self.param_groups):
            group["number"] = number
        self._train = train
        self._whole: dict[int, WholeStepper] = {}
        self._steppers = [self._stepper(group) for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients; an engine may step some groups at a time, with the others empty."""
        for group in self.param_groups:
            if not group["params"]:
                continue
            number = group["number"]
            stepper, found_inf = self._steppers[number], self.found_inf
            # Some steppers, such as fused kernels, test found_inf on the device: no host waits.
            able = getattr(stepper, "_step_supports_amp_scaling", False)  # torch's name for that
            if not able and found_inf is not None:
                if bool(found_inf):
                    continue
                found_inf = None
            if number in self._whole:
                self._whole[number].step(group, found_inf)
            else:
                stepper.found_inf = found_inf
                stepper.param_groups = [group]
                stepper.step()

    def _stepper(self, group: Group) -> torch.optim.Optimizer:
        """Make the optimizer that steps a group.

        An algorithm of whole parameters sees their whole shapes, even if an engine has cut them.
        """
        algorithm, its = group["algorithm"], group
        if not algorithm.elementwise:
            whole = [nn.Parameter(torch.empty(shape, device="meta")) for shape in group["shapes"]]
            its = group | {"params": whole}
        stepper = algorithm.make([its], self._train)
        stepper.state = self.state
        for name, default in stepper.defaults.items():
            group.setdefault(name, default)
        return stepper

    def cut(self, pieces: Iterable[Piece], ranks: dist.ProcessGroup, device: torch.device) -> None:
        """Take note that an engine has cut the parameters; all ranks that share them call this.

        Args:
            pieces: this rank's pieces of all parameters.
            ranks: the ranks that share the parameters.
            device: the device that computes and sends, wherever the pieces are.
        """
        its = {piece.name: piece for piece in pieces}
        groups = [group for group in self.param_groups if not group["algorithm"].elementwise]
        parts = [[its[name] for name in group["names"]] for group in groups]
        # Balanced over all groups at once: otherwise each would begin with the first rank.
        owners = owners_of(groups, ranks.size())
        for group, part in zip(groups, parts, strict=True):
            whole = WholeStepper(group, part, owners, ranks, device, self._train)
            self._whole[group["number"]] = whole

    def algorithms(self) -> dict[str, Algorithm]:
        """Return each parameter's algorithm, by the parameter's name."""
        return {n: group["algorithm"] for group in self.param_groups for n in group["names"]}

    def owned_states(self) -> dict[str, dict[str, Tensor]]:
        """Return, by name, the states of the parameters that this rank steps whole for all."""
        return {name: kept for each in self._whole.values() for name, kept in each.owned_states()}

    def local_states(self, parameter: Tensor, algorithm: Algorithm) -> dict[str, Tensor]:
        """Return the states of a parameter as the engine has it; make them if no step has yet.

        Empty for a cut parameter that an owner steps whole: see :meth:`owned_states`.
        """
        if self._whole and not algorithm.elementwise:
            return {}
        state, declared = self.state[parameter], algorithm.states(parameter.shape)
        if not state:
            for kind, made in declared.items():
                state[kind] = _initial(parameter, made)
        check_kept(state, declared)
        return state


def _initial(parameter: Tensor, state: StateSpec) -> Tensor:
    if isinstance(parameter, DTensor) and state.shape == tuple(parameter.shape):
        return torch.full_like(parameter, state.initial, dtype=state.dtype, requires_grad=False)
    # On the parameter's device, where fused AdamW keeps its count of steps too.
    return state.initial_tensor(parameter.device)


OPTIMIZERS: dict[str, Callable[[Policy], Algorithm]] = {
    "adamw": lambda policy: ADAMW,
    "muon": lambda policy: MUON if policy.role == "matrix" else ADAMW,
}
"""By ``train.optimizer``, a function from a parameter's policy to the algorithm that steps it."""


def build_optimizer(model: nn.Module, config: RunConfig) -> GroupedOptimizer:
    """Build the optimizer of a model, whose parameters an engine may have cut."""
    whole = outline(config.model)  # an engine may have flattened the parameters
    names = [name for name, _ in whole.named_parameters()]
    parameters = dict(zip(names, model.parameters(), strict=True))
    groups = parameter_groups(whole, config)
    for group in groups:
        group["params"] = [parameters[name] for name in group["names"]]
    return GroupedOptimizer(groups, config.train)


def check_optimizer(kind: str) -> None:
    """Check that there is an optimizer of this name.

    Raises:
        UserError: there is none.
    """
    if kind not in OPTIMIZERS:
        raise UserError(f"train.optimizer is {kind!r}; expected one of {', '.join(OPTIMIZERS)}")


def parameter_groups(model: nn.Module, config: RunConfig) -> list[Group]:
    """Return the groups of a model's optimizer, still without ``params``.

    Args:
        model: the model's outline, whose parameters have their whole shapes.
        config: the run's.

    Raises:
        UserError: there is no such optimizer, or it cannot be offloaded to files.
    """
    kind = config.train.optimizer
    check_optimizer(kind)
    groups: dict[tuple[Any, ...], Group] = {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    decaying = {"matrices": {"always"}, "all": {"always", "all"}}[config.train.decay]
    for name, policy in policies(model):
        algorithm, decays = OPTIMIZERS[kind](policy), policy.decay in decaying
        algorithm.check(shapes[name])
        assert not policy.stack or sum(policy.stack) == shapes[name][0], name
        if not algorithm.elementwise and config.parallel.offload_dir:
            raise UserError(
                f"parallel.offload_dir is {config.parallel.offload_dir}, but what train.optimizer "
                f"{kind} keeps of whole parameters cannot be in files; expected no folder, or "
                f"{' or '.join(_elementwise(model))}"
            )
        empty = {
            "names": [],
            "shapes": [],
            "stacks": [],
            "algorithm": algorithm,
            "weight_decay": config.train.weight_decay if decays else 0.0,
            "lr": config.train.lr * policy.lr,
            "lr_multiplier": policy.lr,
        }
        group = groups.setdefault((not decays, policy.lr, algorithm), empty)
        group["names"].append(name)
        group["shapes"].append(shapes[name])
        group["stacks"].append(policy.stack)
    return [groups[key] for key in sorted(groups, key=lambda key: key[:2])]


def _elementwise(model: nn.Module) -> list[str]:
    """Return the names of the optimizers that step every parameter of a model elementwise."""
    its = [policy for _, policy in policies(model)]
    return [name for name, choose in OPTIMIZERS.items() if all(choose(p).elementwise for p in its)]


def states_of(groups: Iterable[Group]) -> dict[str, StateSpec]:
    """Return, by key, the states that are kept for all parameters, on whichever rank."""
    return {
        f"{kind}.{name}": state
        for group in groups
        for name, shape in zip(group["names"], group["shapes"], strict=True)
        for kind, state in group["algorithm"].states(shape).items()
    }


def state_bytes(groups: Iterable[Group]) -> int:
    """Return the bytes of all states, without single numbers such as a count of steps."""
    states = states_of(groups).values()
    return sum(math.prod(s.shape) * s.dtype.itemsize for s in states if s.shape)
