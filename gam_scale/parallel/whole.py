"""Parameters that an engine has cut, stepped whole: each by one rank, which is sent all parts.

What orthogonalises a matrix, or keeps a number of each of its rows, needs all of it. ZeRO steps a
flat range of many parameters and FSDP2 some of the rows, so that each such parameter has an owner
among the ranks that share it. A step sends parts of parameter and gradient there, and what comes of
them back: three numbers of fp32 per element; two where parameters themselves are not asked for
(:attr:`~gam_scale.parallel.algorithm.Algorithm.additive`). Of ``n`` ranks each sends ``1 / n`` of
all elements: an exchange of all with all, not a gathering. An owner has the states of its
parameters, whole, and computes what one process would.
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
    """The parameter's."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    tensor: Tensor
    """What the engine has its optimizer step, in which the part lies."""
    first: int
    """Where in it."""
    start: int
    """The part's first element in the parameter."""
    length: int

    @property
    def value(self) -> Tensor:
        """The part, a view."""
        return self._of(self.tensor)

    @property
    def gradient(self) -> Tensor:
        """Of the part; a parameter without one has it of 0."""
        gradient = self.tensor.grad
        return torch.zeros_like(self.value) if gradient is None else self._of(gradient)

    def _of(self, tensor: Tensor) -> Tensor:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return local.detach().view(-1)[self.first : self.first + self.length]


OF_PARAMETERS = ("params", "names", "shapes", "stacks")
"""What a group has a list of, one entry for each of its parameters."""


class WholeStepper:
    """Steps one group's parameters, of which each rank has pieces.

    Args:
        group: of the optimizer.
        pieces: of all the group's parameters, in their order.
        owners: by a parameter's name; see :func:`owners_of`.
        ranks: the process group of those that share the parameters.
        device: that computes and sends. Pieces may be elsewhere, as may what is kept of parameters
            between steps: where the pieces are.
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
        dist.all_gather_object(spans, [(p.start, p.length) for p in pieces], group=ranks)
        self.lengths = {p.name: _lengths(p, [s[i] for s in spans]) for i, p in enumerate(pieces)}
        self.by_owner = [[p for p in pieces if owners[p.name] == rank] for rank in self._all]
        self.own = {p.name: nn.Parameter(self._nothing(p)) for p in self.by_owner[ranks.rank()]}
        its = [i for i, piece in enumerate(pieces) if piece.name in self.own]
        lists = {key: [group[key][i] for i in its] for key in OF_PARAMETERS if key != "params"}
        whole = group | lists | {"params": list(self.own.values())}
        self.stepper = self.algorithm.make([whole], train) if self.own else None

    def step(self, group: Group, found_inf: Tensor | None) -> None:
        """Apply the gradients of those parameters that lie in what ``group`` has now.

        Args:
            group: with the settings of this step.
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

    def kept(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Names of the parameters that this rank owns, and what is kept of each."""
        if self.stepper is None:
            return
        for piece in self.by_owner[self.ranks.rank()]:
            state = self.stepper.state[self.own[piece.name]]
            declared = self.algorithm.states(piece.shape)
            if not state:
                state |= {kind: each.made(self.home) for kind, each in declared.items()}
            check_kept(state, declared)
            yield piece.name, state

    def _step(self, stepper: torch.optim.Optimizer, own: list[Piece]) -> None:
        """With what is kept of parameters in the device's memory meanwhile."""
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
        """Give the parameters owned here their gradients, and their values or 0."""
        gradients = self._whole("gradient", by_owner, own)
        if self.algorithm.additive:
            values = [torch.zeros_like(gradient) for gradient in gradients]
        else:
            values = self._whole("value", by_owner, own)
        for piece, value, gradient in zip(own, values, gradients, strict=True):
            self.own[piece.name].data, self.own[piece.name].grad = value, gradient

    def _whole(self, attribute: str, by_owner: list[list[Piece]], own: list[Piece]) -> list[Tensor]:
        """Of the pieces owned here, joined from all ranks."""
        sent = [[getattr(piece, attribute) for piece in of_one] for of_one in by_owner]
        parts = self._exchange(sent, [[self.lengths[p.name][r] for p in own] for r in self._all])
        joined = zip(own, zip(*parts, strict=True), strict=True)
        return [torch.cat(values).view(piece.shape) for piece, values in joined]

    def _decay(
        self, by_owner: list[list[Piece]], settings: Group, found_inf: Tensor | None
    ) -> None:
        """Where the pieces are: owners do not have the values."""
        lost = settings["lr"] * settings["weight_decay"]
        share = 1.0 if found_inf is None else 1.0 - found_inf.to(self.home)
        kept = 1.0 - share * lost
        for piece in (piece for of_one in by_owner for piece in of_one):
            piece.value.mul_(kept)

    def _scatter(self, by_owner: list[list[Piece]], own: list[Piece]) -> None:
        """Bring back what the owned parameters have become, or what is to be added."""
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
        """To each rank its list of tensors; from each one of tensors of these sizes."""
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
        """What stands for a parameter between steps: its shape, in the memory of one number."""
        return torch.empty(1, device=self.device).expand(piece.shape)


def owners_of(groups: Iterable[Group], n_ranks: int) -> dict[str, int]:
    """A rank for each parameter that is stepped whole, the dearest first, so that all ranks have
    about as much to compute; where nothing is, as many elements."""
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
    """By rank, how many of a parameter's elements it has: one range after another, all of them."""
    end = 0
    for start, length in spans:
        assert not length or start == end, f"{piece.name}: elements {end} to {start} are nowhere"
        end += length
    assert end == math.prod(piece.shape), f"{piece.name} ends at element {end}"
    return [length for _, length in spans]
