"""A sweep's finished runs in one file of rows, with which another machine goes on."""

from dataclasses import replace
from pathlib import Path

from gam_scale.data.manifest import MANIFEST_FILE
from gam_scale.errors import UserError
from gam_scale.experiment.deciding import text_of
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.kept import RESULTS, read_rows, write_rows
from gam_scale.scaling.sweep import joined
from gam_scale.scaling.sweep_cell import KeptRun, SweepCell
from gam_scale.strict import from_dict, to_dict


def with_kept(grid: Grid[SweepCell], folder: Path) -> Grid[SweepCell]:
    """The grid, of which those runs count as done that ``folder`` keeps.

    What branches off a run that is kept and not here branches off the longest that is to come.

    Raises:
        UserError: the file is not of a sweep, or of one of another text.
    """
    runs, jobs = _read(folder), []
    for job in grid.jobs:
        cells = [cell if cell.is_here else replace(cell, kept=runs.get(cell.name)) for cell in job]
        to_come = [cell for cell in cells if not cell.kept]
        if cells[0].kept and to_come:
            joined(to_come)
        jobs.append(cells)
    grid = Grid(jobs)
    _check_text(grid, folder)
    return grid


def keep(grid: Grid[SweepCell], folder: Path) -> None:
    """Keep the finished runs in ``folder``, beside those that it has, of this grid or another."""
    runs = _read(folder)
    finished = [cell for cell in grid.cells if cell.is_here and cell.name not in runs]
    if finished:
        runs |= {cell.name: cell.to_keep() for cell in finished}
        write_rows([to_dict(run) for run in runs.values()], folder)


def _read(folder: Path) -> dict[str, KeptRun]:
    path = folder / RESULTS
    rows = read_rows(path) if path.exists() else []
    runs = [from_dict(KeptRun, row, f"{path}:{i}") for i, row in enumerate(rows, 1)]
    return {run.cell: run for run in runs}


def _check_text(grid: Grid[SweepCell], folder: Path) -> None:
    """Refuse runs on another text than the data's, where that is here: a report needs none."""
    texts: dict[str, str] = {}
    for cell in grid.cells:
        data = cell.config.data.sets[0].path
        if not cell.kept or not (Path(data) / MANIFEST_FILE).exists():
            continue
        if data not in texts:
            texts[data] = text_of(cell.config)
        if (text := texts[data]) != cell.kept.text:
            raise UserError(
                f"{folder / RESULTS} has {cell.name}, which was trained on the text "
                f"{cell.kept.text}, and {data} is {text}; expected the same text and tokenizer, or "
                "another --to"
            )
