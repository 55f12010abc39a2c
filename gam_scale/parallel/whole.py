"""Step parameters whole that an engine has cut: each by its owner, one rank that gets all parts.

An algorithm that orthogonalises a matrix, or keeps a number for each row, needs the whole matrix.
But ZeRO steps a flat range of many parameters on each rank, and FSDP2 some of the rows. So each
such parameter has an owner among the ranks that share it. A step sends the parts of parameter and
gradient to the owner, and the result back: three fp32 numbers per element, or two if the parameter
itself is not needed (:attr:`~gam_scale.parallel.algorithm.Algorithm.additive`). Each of ``n`` ranks
sends ``1 / n`` of all elements: an all-to-all exchange, not a gathering. An owner keeps the whole
states of its parameters and computes what a single process would.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gam_scale.config import TrainConfig
from gam_scale.parallel.algorithm import Group, check_kept


@dataclass(frozen=True)
class Piece:
    """This rank's part of a parameter: some elements of it, flattened."""

    name: str
    """The parameter's name."""
    shape: tuple[int, ...]
    """The whole parameter's shape."""
    tensor: Tensor
    """The tensor that the engine has its optimizer step, which contains the part."""
    offset_in_tensor: int
    """The part's first element in this rank's flattened ``tensor``."""
    offset_in_parameter: int
    """The part's first element in the flattened parameter."""
    length: int

    @property
    def value(self) -> Tensor:
        """The part, as a view."""
        return self._of(self.tensor)

    @property
    def gradient(self) -> Tensor:
        """The part's gradient, 0 if the parameter has none."""
        gradient = self.tensor.grad
        return torch.zeros_like(self.value) if gradient is None else self._of(gradient)

    def _of(self, tensor: Tensor) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return local.detach().view(-1)[self.offset_in_tensor : self.offset_in_tensor + self.length]


OF_PARAMETERS = ("params", "names", "shapes", "stacks")
"""Keys under which a group has a list with one entry for each parameter."""


class WholeStepper:
    """Steps one group's parameters, of each of which every rank has a piece.

    Args:
        group: the optimizer's.
        pieces: this rank's pieces of all the group's parameters, in the group's order.
        owners: the owning rank by a parameter's name; see :func:`owners_of`.
        ranks: the process group of the ranks that share the parameters.
        device: the device that computes and sends. The pieces may be on another one, where the
            states of parameters then are too between steps.
        train: settings.
    """

    def __init__(
        self,
        group: Group,
        pieces: list[Piece],
        owners: Mapping[str, int],
        ranks: dist.ProcessGroup,
        device: torch.device,
        train: TrainConfig,
    ) -> None:
        self.algorithm, self.ranks = group["algorithm"], ranks
        self.device, self.home = device, pieces[0].tensor.device
        spans: list[Any] = [None] * ranks.size()
        dist.all_gather_object(
            spans, [(p.offset_in_parameter, p.length) for p in pieces], group=ranks
        )
        self.lengths = {p.name: _lengths(p, [s[i] for s in spans]) for i, p in enumerate(pieces)}
        self.by_owner = [[p for p in pieces if owners[p.name] == rank] for rank in self._all]
        self.own = {p.name: nn.Parameter(self._nothing(p)) for p in self.by_owner[ranks.rank()]}
        its = [i for i, piece in enumerate(pieces) if piece.name in self.own]
        lists = {key: [group[key][i] for i in its] for key in OF_PARAMETERS if key != "params"}
        whole = group | lists | {"params": list(self.own.values())}
        self.stepper = self.algorithm.make([whole], train) if self.own else None

    def step(self, group: Group, found_inf: Tensor | None) -> None:
        """Step those parameters whose pieces lie in the ``params`` that ``group`` has now.

        Args:
            group: the group, with this step's settings.
            found_inf: see :class:`~gam_scale.parallel.optimizer.GroupedOptimizer`; None: step.
        """
        shown = {id(tensor) for tensor in group["params"]}
        by_owner = [[p for p in of_one if id(p.tensor) in shown] for of_one in self.by_owner]
        own = by_owner[self.ranks.rank()]
        settings = {key: value for key, value in group.items() if key not in OF_PARAMETERS}
        self._gather(by_owner, own)
        if self.algorithm.additive:
            self._decay(by_owner, settings, found_inf)
            settings["weight_decay"] = 0.0
        if self.stepper is not None:
            self.stepper.param_groups[0].update(settings)
            self.stepper.found_inf = None if found_inf is None else found_inf.to(self.device)
            self._step(self.stepper, own)
        self._scatter(by_owner, own)

    def owned_states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the name and the states of each parameter that this rank owns."""
        if self.stepper is None:
            return
        for piece in self.by_owner[self.ranks.rank()]:
            state = self.stepper.state[self.own[piece.name]]
            declared = self.algorithm.states(piece.shape)
            if not state:
                state |= {kind: each.initial_tensor(self.home) for kind, each in declared.items()}
            check_kept(state, declared)
            yield piece.name, state

    def _step(self, stepper: torch.optim.Optimizer, own: list[Piece]) -> None:
        """Step the owned parameters, with their states in the device's memory meanwhile."""
        states = [stepper.state[self.own[piece.name]] for piece in own]
        kept = [dict(state) for state in states]
        for state in states:
            state |= {kind: tensor.to(self.device) for kind, tensor in state.items()}
        stepper.step()
        for piece in own:
            self.own[piece.name].grad = None
        for state, old in zip(states, kept, strict=True):
            for kind, tensor in state.items():
                if tensor.device != self.home:
                    at_home = old[kind].copy_(tensor) if kind in old else tensor.to(self.home)
                    state[kind] = at_home

    def _gather(self, by_owner: list[list[Piece]], own: list[Piece]) -> None:
        """Give the parameters owned here their gradients, and their values, or 0 if additive."""
        gradients = self._whole("gradient", by_owner, own)
        if self.algorithm.additive:
            values = [torch.zeros_like(gradient) for gradient in gradients]
        else:
            values = self._whole("value", by_owner, own)
        for piece, value, gradient in zip(own, values, gradients, strict=True):
            self.own[piece.name].data, self.own[piece.name].grad = value, gradient

    def _whole(self, attribute: str, by_owner: list[list[Piece]], own: list[Piece]) -> list[Tensor]:
        """Return the values or gradients of the parameters owned here, joined from all ranks."""
        sent = [[getattr(piece, attribute) for piece in of_one] for of_one in by_owner]
        parts = self._exchange(sent, [[self.lengths[p.name][r] for p in own] for r in self._all])
        joined = zip(own, zip(*parts, strict=True), strict=True)
        return [torch.cat(values).view(piece.shape) for piece, values in joined]

    def _decay(
        self, by_owner: list[list[Piece]], settings: Group, found_inf: Tensor | None
    ) -> None:
        """Apply weight decay to this rank's pieces: the owners do not have the values."""
        lost = settings["lr"] * settings["weight_decay"]
        share = 1.0 if found_inf is None else 1.0 - found_inf.to(self.home)
        kept = 1.0 - share * lost
        for piece in (piece for of_one in by_owner for piece in of_one):
            piece.value.mul_(kept)

    def _scatter(self, by_owner: list[list[Piece]], own: list[Piece]) -> None:
        """Send the owned parameters' new values, or what is to be added, back to all pieces."""
        cut = [self.own[p.name].detach().view(-1).split(self.lengths[p.name]) for p in own]
        sent = [[parts[rank] for parts in cut] for rank in self._all]
        received = self._exchange(sent, [[p.length for p in of_one] for of_one in by_owner])
        for of_one, parts in zip(by_owner, received, strict=True):
            for piece, part in zip(of_one, parts, strict=True):
                value, part = piece.value, part.to(self.home)
                value.add_(part) if self.algorithm.additive else value.copy_(part)
        for piece in own:
            self.own[piece.name].data = self._nothing(piece)

    def _exchange(self, sent: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:
        """Send each rank its list of tensors; return each rank's list, of tensors of ``sizes``."""
        joined = [part for parts in sent for part in parts] or [torch.empty(0)]
        lengths = [sum(map(len, parts)) for parts in sent]
        totals = [sum(each) for each in sizes]
        received = torch.empty(sum(totals), device=self.device)
        flat = torch.cat(joined).to(self.device)
        dist.all_to_all_single(received, flat, totals, lengths, group=self.ranks)
        parts = zip(received.split(totals), sizes, strict=True)
        return [list(part.split(each)) if each else [] for part, each in parts]

    @property
    def _all(self) -> range:
        return range(self.ranks.size())

    def _nothing(self, piece: Piece) -> Tensor:
        """Return a stand-in for a parameter between steps: its shape in one number's memory."""
        return torch.empty(1, device=self.device).expand(piece.shape)


def owners_of(groups: Iterable[Group], n_ranks: int) -> dict[str, int]:
    """Choose an owner for each parameter that is stepped whole, the most expensive one first.

    All ranks then have about equal FLOPs or, where a step costs none, about equally many elements.
    """
    costs = {
        name: (group["algorithm"].flops(shape, stack), math.prod(shape))
        for group in groups
        if not group["algorithm"].elementwise
        for name, shape, stack in zip(*(group[key] for key in OF_PARAMETERS[1:]), strict=True)
    }
    owners, loads = {}, [(0.0, 0)] * n_ranks
    for name in sorted(costs, key=costs.__getitem__, reverse=True):
        rank = loads.index(min(loads))
        owners[name] = rank
        loads[rank] = (loads[rank][0] + costs[name][0], loads[rank][1] + costs[name][1])
    return owners


def _lengths(piece: Piece, spans: list[tuple[int, int]]) -> list[int]:
    """Return the length of each rank's range; assert that together they are the parameter."""
    end = 0
    for start, length in spans:
        assert not length or start == end, f"{piece.name}: elements {end} to {start} are nowhere"
        end += length
    assert end == math.prod(piece.shape), f"{piece.name} ends at element {end}"
    return [length for _, length in spans]
