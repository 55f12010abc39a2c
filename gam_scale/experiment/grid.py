"""An experiment: a grid of cells, in jobs that each train some of them one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from gam_scale.experiment.cell import Cell, Row

AnyCell = TypeVar("AnyCell", bound=Cell)


@dataclass(frozen=True)
class Grid(Generic[AnyCell]):
    """The cells of an experiment."""

    jobs: Sequence[Sequence[AnyCell]]
    """In the order in which they are trained; a cell may continue an earlier one of its job."""

    @property
    def cells(self) -> list[AnyCell]:
        """All cells, the cheapest first."""
        return sorted(chain(*self.jobs), key=lambda cell: cell.flops)

    def __len__(self) -> int:
        return sum(map(len, self.jobs))

    def missing(self) -> "Grid[AnyCell]":
        """Return the same grid without the cells that are finished."""
        jobs = [[cell for cell in job if cell.row() is None] for job in self.jobs]
        return Grid([job for job in jobs if job])

    def only(self, text: str) -> "Grid[AnyCell]":
        """Return the same grid with only the jobs that have a cell with ``text`` in its name."""
        return Grid([job for job in self.jobs if any(text in cell.name for cell in job)])

    def finished(self) -> list[tuple[AnyCell, Row]]:
        """Return the finished cells and their rows, the cheapest first."""
        return [(cell, row) for cell in self.cells if (row := cell.row()) is not None]

    @property
    def flops(self) -> float:
        """FLOPs of training every cell from its own beginning."""
        return sum(cell.flops for cell in self.cells)

    @property
    def own_flops(self) -> float:
        """FLOPs of training every cell if cells branch off one another's runs."""
        return sum(cell.own_flops for cell in self.cells)
