"""Training a grid on this machine, one job after the other; a job that fails does not end it."""

from collections.abc import Sequence

from gam_scale.experiment.cell import Cell
from gam_scale.experiment.grid import AnyCell, Grid
from gam_scale.experiment.worker import train_in_worker, wait_until_free


def train(grid: Grid[AnyCell]) -> list[AnyCell]:
    """Train every cell, going on with what a killed command left of it.

    Each job is a process of its own; the console is told which one runs, and why it failed.

    Returns:
        The cells that are unfinished all the same.

    Raises:
        UserError: a config cannot work; the jobs before it are done.
    """
    unfinished: list[AnyCell] = []
    for i, job in enumerate(grid.jobs, 1):
        print(f"[{i}/{len(grid.jobs)}] {_names(job)}", flush=True)
        for cell in job:
            wait_until_free(cell.run_dir)
        configs = [cell.write_config() for cell in job]
        log = configs[0].with_suffix(".log")
        ended = train_in_worker(configs, log)
        if failed := [cell for cell in job if cell.row() is None]:
            unfinished += failed
            print(f"  status {ended.status}, {ended.reason}")
            print(f"  unfinished: {_names(failed)}; {log}", flush=True)
    if unfinished:
        print(f"{len(unfinished)} runs are unfinished; the same command goes on with them")
    return unfinished


def _names(job: Sequence[Cell]) -> str:
    return ", ".join(cell.name for cell in job)
