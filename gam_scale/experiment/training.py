"""Train a grid on this machine, some jobs at a time; a failed job does not end the others."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gam_scale.experiment.cell import Cell
from gam_scale.experiment.grid import AnyCell, Grid
from gam_scale.experiment.worker import Ended, Worker, wait_until_free
from gam_scale.hardware.processor import cpu_threads

POLL_S = 0.1
"""Seconds between checks on the processes at work."""


@dataclass(frozen=True)
class _AtWork:
    """A job and the process that trains it."""

    job: Sequence[Cell]
    worker: Worker


def train(
    grid: Grid[AnyCell],
    side_by_side: int = 1,
    further: Callable[[], Grid[AnyCell]] | None = None,
) -> list[AnyCell]:
    """Train every cell, continuing what a killed command left unfinished.

    Each job has a process of its own. The console shows which job begins, and why one failed.

    Args:
        grid: the jobs to train.
        side_by_side: processes at a time, which share the processor's cores.
        further: returns the jobs to train after a job has ended, for an experiment whose results
            decide what else to train. Jobs with cells that were begun here are left out.

    Returns:
        The cells that are still unfinished.

    Raises:
        UserError: a config cannot work; the jobs before it are done, or begun and saved.
    """
    waiting, at_work = deque(grid.jobs), list[_AtWork]()
    unfinished, begun = list[AnyCell](), set[str]()
    n_begun = 0
    threads = cpu_threads(side_by_side) if side_by_side > 1 else 0
    try:
        while waiting or at_work:
            while waiting and len(at_work) < side_by_side:
                job = waiting.popleft()
                n_begun += 1
                begun |= {cell.name for cell in job}
                print(f"[{n_begun}/{n_begun + len(waiting)}] {_names(job)}", flush=True)
                at_work.append(_begun(job, threads))
            for each in list(at_work):
                if (ended := each.worker.ended()) is not None:
                    at_work.remove(each)
                    unfinished += _failed(each, ended)
                    if further:
                        jobs = further().jobs
                        waiting = deque(j for j in jobs if begun.isdisjoint(c.name for c in j))
            time.sleep(POLL_S)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            print("  what was training saves and ends; Ctrl-C once more does not wait", flush=True)
        for each in at_work:
            each.worker.stop()
        raise
    if unfinished:
        print(f"{len(unfinished)} runs are unfinished; the same command goes on with them")
    return unfinished


def _begun(job: Sequence[Cell], threads: int) -> _AtWork:
    for cell in job:
        wait_until_free(cell.run_dir)
    configs = [cell.write_config() for cell in job]
    return _AtWork(job, Worker(job[0].trainer, configs, configs[0].with_suffix(".log"), threads))


def _failed(each: _AtWork, ended: Ended) -> list:
    """Return the unfinished cells of a job whose process has ended, and print why it ended."""
    failed = [cell for cell in each.job if cell.row() is None]
    if failed or ended.status:  # a run that diverged counts as done
        print(f"  status {ended.status}, {ended.reason}", flush=True)
    if failed:
        print(f"  unfinished: {_names(failed)}; {each.worker.log}", flush=True)
    return failed


def _names(job: Sequence[Cell]) -> str:
    return ", ".join(cell.name for cell in job)
