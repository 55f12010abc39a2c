"""Parameters that an engine has cut, stepped whole: each by one rank, which is sent all parts.

What orthogonalises a matrix, or keeps a number of each of its rows, needs all of it. ZeRO steps a
flat range of many parameters and FSDP2 some of the rows, so that each such parameter has an owner
among the ranks that share it. A step sends parts of parameter and gradient there, and what comes of
them back: three numbers of fp32 per element, whatever the optimizer. An owner has the states of its
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


class WholeStepper:
    """Steps one group's parameters, of which each rank has pieces.

    Args:
        group: of the optimizer.
        pieces: of all the group's parameters, in the same order on all ranks.
        owners: by a parameter's name; see :func:`owners_of`.
        ranks: the process group of those that share the parameters.
        train: settings.
    """

    def __init__(
        self,
        group: Group,
        pieces: list[Piece],
        owners: Mapping[str, int],
        ranks: dist.ProcessGroup,
        train: TrainConfig,
    ) -> None:
        self.algorithm, self.ranks = group["algorithm"], ranks
        self.device = pieces[0].tensor.device
        spans: list[Any] = [None] * ranks.size()
        dist.all_gather_object(spans, [(p.start, p.length) for p in pieces], group=ranks)
        self.lengths = {p.name: _lengths(p, [s[i] for s in spans]) for i, p in enumerate(pieces)}
        self.by_owner = [[p for p in pieces if owners[p.name] == rank] for rank in self._all]
        self.own = {p.name: nn.Parameter(self._nothing(p)) for p in self.by_owner[ranks.rank()]}
        its = group | {"params": list(self.own.values())}
        self.stepper = self.algorithm.make([its], train) if self.own else None

    def step(self, group: Group, found_inf: Tensor | None) -> None:
        """Apply the gradients of those parameters that lie in what ``group`` has now.

        Args:
            group: with the settings of this step.
            found_inf: see :class:`~gam_scale.parallel.optimizer.GroupedOptimizer`; None: step.
        """
        shown = {id(tensor) for tensor in group["params"]}
        by_owner = [[p for p in of_one if id(p.tensor) in shown] for of_one in self.by_owner]
        own = by_owner[self.ranks.rank()]
        self._gather(by_owner, own)
        if self.stepper is not None:
            settings = {key: value for key, value in group.items() if key != "params"}
            self.stepper.param_groups[0].update(settings)
            self.stepper.found_inf = found_inf
            self.stepper.step()
        self._scatter(by_owner, own)

    def kept(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Names of the parameters that this rank owns, and what is kept of each."""
        if self.stepper is None:
            return
        for piece in self.by_owner[self.ranks.rank()]:
            state = self.stepper.state[self.own[piece.name]]
            declared = self.algorithm.states(piece.shape)
            if not state:
                state |= {kind: each.made(self.device) for kind, each in declared.items()}
            check_kept(state, declared)
            yield piece.name, state

    def _gather(self, by_owner: list[list[Piece]], own: list[Piece]) -> None:
        """Give the parameters owned here their values and gradients."""
        for attribute in ("value", "gradient"):
            sent = [[getattr(p, attribute) for p in of_one] for of_one in by_owner]
            parts = self._exchange(
                sent, [[self.lengths[p.name][r] for p in own] for r in self._all]
            )
            for piece, values in zip(own, zip(*parts, strict=True), strict=True):
                whole = torch.cat(values).view(piece.shape)
                if attribute == "value":
                    self.own[piece.name].data = whole
                else:
                    self.own[piece.name].grad = whole

    def _scatter(self, by_owner: list[list[Piece]], own: list[Piece]) -> None:
        """Bring back what the owned parameters have become."""
        cut = [self.own[p.name].detach().view(-1).split(self.lengths[p.name]) for p in own]
        sent = [[parts[rank] for parts in cut] for rank in self._all]
        received = self._exchange(sent, [[p.length for p in of_one] for of_one in by_owner])
        for of_one, parts in zip(by_owner, received, strict=True):
            for piece, part in zip(of_one, parts, strict=True):
                piece.value.copy_(part)
        for piece in own:
            self.own[piece.name].data, self.own[piece.name].grad = self._nothing(piece), None

    def _exchange(self, sent: list[list[Tensor]], sizes: list[list[int]]) -> list[list[Tensor]]:
        """To each rank its list of tensors; from each one of tensors of these sizes."""
        empty = torch.empty(0, device=self.device)
        joined = [torch.cat([empty, *parts]) for parts in sent]
        totals = [sum(each) for each in sizes]
        received = torch.empty(sum(totals), device=self.device)
        lengths = [len(part) for part in joined]
        dist.all_to_all_single(received, torch.cat(joined), totals, lengths, group=self.ranks)
        parts = zip(received.split(totals), sizes, strict=True)
        return [list(part.split(each)) if each else [] for part, each in parts]

    @property
    def _all(self) -> range:
        return range(self.ranks.size())

    def _nothing(self, piece: Piece) -> Tensor:
        """What stands for a parameter between steps: its shape, in the memory of one number."""
        return torch.empty(1, device=self.device).expand(piece.shape)


def owners_of(pieces: Iterable[Piece], n_ranks: int) -> dict[str, int]:
    """A rank for each parameter, the largest ones first, so that all have about as much."""
    owners, loads = {}, [0] * n_ranks
    for piece in sorted(pieces, key=lambda piece: -math.prod(piece.shape)):
        rank = loads.index(min(loads))
        owners[piece.name] = rank
        loads[rank] += math.prod(piece.shape)
    return owners


def _lengths(piece: Piece, spans: list[tuple[int, int]]) -> list[int]:
    """By rank, how many of a parameter's elements it has: one range after another, all of them."""
    end = 0
    for start, length in spans:
        assert not length or start == end, f"{piece.name}: elements {end} to {start} are nowhere"
        end += length
    assert end == math.prod(piece.shape), f"{piece.name} ends at element {end}"
    return [length for _, length in spans]
