"""A grid as an array of Slurm jobs, each of which trains its cells one after the other."""

from dataclasses import replace

from gam_scale.experiment.grid import AnyCell, Grid
from gam_scale.launch.status import slurm_states, status
from gam_scale.launch.submit import Request, submit

UNDER_WAY = ("running", "queued", "starting", "completing")
"""States of a run, by :mod:`gam_scale.launch.status`, that somebody trains or is about to."""


def not_under_way(grid: Grid[AnyCell]) -> Grid[AnyCell]:
    """The jobs of which no cell is queued or trained already."""
    states = slurm_states()
    return Grid(
        [
            job
            for job in grid.jobs
            if not any(status(cell.run_dir, states).state in UNDER_WAY for cell in job)
        ]
    )


def as_request(grid: Grid[AnyCell], size: Request) -> Request:
    """``size`` with the grid's jobs, whose configs are written."""
    configs = [[str(cell.write_config()) for cell in job] for job in grid.jobs]
    return replace(
        size, configs=[first for first, *_ in configs], then=[rest for _, *rest in configs]
    )


def submit_grid(grid: Grid[AnyCell], size: Request) -> list[str]:
    """Hand the grid in, sized as ``size`` says; the number of each of its jobs."""
    return [job.job_id for job in submit(as_request(grid, size))]
