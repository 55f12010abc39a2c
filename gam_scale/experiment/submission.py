"""Submit a grid as an array of Slurm jobs, each of which trains its cells one after the other."""

from dataclasses import replace

from gam_scale.experiment.grid import AnyCell, Grid
from gam_scale.launch.status import slurm_states, status
from gam_scale.launch.submit import Request, submit

UNDER_WAY = ("running", "queued", "starting", "completing")
"""States (of :mod:`gam_scale.launch.status`) of a run in training, or about to be."""


def not_under_way(grid: Grid[AnyCell]) -> Grid[AnyCell]:
    """Return the grid with only the jobs of which no cell is queued or in training."""
    states = slurm_states()
    return Grid(
        [
            job
            for job in grid.jobs
            if not any(status(cell.run_dir, states).state in UNDER_WAY for cell in job)
        ]
    )


def as_request(grid: Grid[AnyCell], size: Request) -> Request:
    """Write the configs of a grid and return ``size`` with the grid's jobs."""
    configs = [[str(cell.write_config()) for cell in job] for job in grid.jobs]
    return replace(
        size, configs=[first for first, *_ in configs], then=[rest for _, *rest in configs]
    )


def submit_grid(grid: Grid[AnyCell], size: Request) -> list[str]:
    """Submit the grid with the resources of ``size`` and return the ids of its jobs."""
    return [job.job_id for job in submit(as_request(grid, size))]
