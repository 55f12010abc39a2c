"""Keep a sweep's finished runs in one file, with which another machine can continue the sweep."""

from dataclasses import replace
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.kept import RESULTS, read_rows, write_rows
from gam_scale.scaling.sweep import link_branches
from gam_scale.scaling.sweep_cell import KeptRun, SweepCell
from gam_scale.scaling.sweep_origin import here_text
from gam_scale.strict import from_dict, to_dict


def with_kept(grid: Grid[SweepCell], folder: Path) -> Grid[SweepCell]:
    """Return the grid, with the runs that ``folder`` keeps counted as done.

    If a trunk is kept but not here, its remaining branches branch off the longest of them.

    Raises:
        UserError: the file is not a sweep's, or has runs that were trained on another text.
    """
    runs, jobs = _read(folder), []
    for job in grid.jobs:
        cells = [cell if cell.is_here else replace(cell, kept=runs.get(cell.name)) for cell in job]
        to_come = [cell for cell in cells if not cell.kept]
        if cells[0].kept and to_come:
            link_branches(to_come)
        jobs.append(cells)
    grid = Grid(jobs)
    _check_text(grid, folder)
    return grid


def keep(grid: Grid[SweepCell], folder: Path) -> None:
    """Add the grid's finished runs to those in ``folder``, which may be of other grids too."""
    rows, runs = _rows(folder), _read(folder)
    finished = [cell for cell in grid.cells if cell.is_here and cell.name not in runs]
    if finished:  # rows of an earlier version stay as they are
        write_rows([*rows, *(to_dict(cell.to_keep()) for cell in finished)], folder)


def _rows(folder: Path) -> list[Row]:
    path = folder / RESULTS
    return read_rows(path) if path.exists() else []


def _read(folder: Path) -> dict[str, KeptRun]:
    path, rows = folder / RESULTS, _rows(folder)
    runs = [from_dict(KeptRun, row, f"{path}:{i}") for i, row in enumerate(rows, 1)]
    return {run.cell: run for run in runs}


def _check_text(grid: Grid[SweepCell], folder: Path) -> None:
    """Refuse kept runs of another text than the data's.

    Data that is not here is not compared; a report does not need it.
    """
    texts: dict[str, str] = {}
    for cell in grid.cells:
        data = cell.config.data.sets[0].path
        if not cell.kept:
            continue
        if data not in texts:
            texts[data] = here_text(cell.config)
        if (text := texts[data]) and text != cell.kept.text:
            raise UserError(
                f"{folder / RESULTS} has {cell.name}, which was trained on the text "
                f"{cell.kept.text}, and {data} is {text}; expected the same text and tokenizer, or "
                "another --to"
            )
