"""Whether Slurm starts a job again: one policy for slurm/*.sh and for tools/launch.py's jobs.

=====================================  ========================================================
how training ended                     what the job does
=====================================  ========================================================
finished: status 0                     ends
a mistake that a user can mend: 2      ends: the same again would fail the same
stopped by a signal, state saved: 75   starts again, once
anything else, such as a killed rank   starts again; ``checkpoint.max_restarts`` starts in a row
                                       without a newer checkpoint become a mistake
                                       (:func:`gam_scale.run.restarts.count_start`)
the same, run directory not opened     starts again, but the third start in a row ends
=====================================  ========================================================

A mistake that a user can mend is one for which the command line exits with status 2:
:func:`gam_scale.cli.ending`.

In jobs of slurm/*.sh the batch shell, slurm/common.sh, asks this module, since it outlives the
ranks. In jobs of tools/launch.py the batch shell is submitit's, so the ranks ask: rank 0 after a
signal, any rank after an error.

The answer is shell text for the host to run, which has Slurm's clients; a job's Python may be in a
container, which has none. ``python -m gam_scale.launch.requeue STATUS UNOPENED`` prints the answer.
"""

import subprocess

from gam_scale import cli

STOPPED = 75
"""Exit status of training that a signal stopped, with its state saved (EX_TEMPFAIL)."""
UNOPENED = 3
"""Starts in a row that may end before the run directory is opened, where the run counts them."""

# One task of an array has the array's own number as SLURM_JOB_ID, by which all tasks are meant.
_LOOK = """\
task=${{SLURM_ARRAY_TASK_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
task=${{task:-$SLURM_JOB_ID}}
state=$(squeue -h -j "$task" -o %T 2>/dev/null)
echo "job $SLURM_JOB_ID: training ended with status {status}, Slurm says ${{state:-nothing}}"
"""
# A job that was cancelled, or that Slurm itself has requeued (it is then completing or pending), is
# left alone. With `incomplete` the controller refuses a job that was cancelled since squeue looked.
_REQUEUE = """\
[ "$state" != RUNNING ] || scontrol requeue incomplete "$task"
"""
_NEVER_OPENED = f"""\
echo "error: {UNOPENED} starts in a row ended before the run directory was opened; expected a job \
that gets that far (the logs of its ranks say what failed)" >&2
"""


def commands(status: int, unopened: int = 0) -> str:
    """Return shell lines for a job's host, which say how it ended and requeue it if need be.

    They requeue a job that Slurm calls RUNNING, and leave alone a job that Slurm is ending already.

    Args:
        status: exit status with which training ended.
        unopened: starts in a row, this one too, that failed before the run directory was opened.
    """
    said = _LOOK.format(status=status)
    if status in (0, cli.EXIT_USER_ERROR):
        return said
    if status != STOPPED and unopened >= UNOPENED:
        return said + _NEVER_OPENED
    return said + _REQUEUE


def end_job(status: int, unopened: int = 0) -> None:
    """Run :func:`commands`, from a rank that is in no container."""
    subprocess.run(["sh", "-c", commands(status, unopened)])


def main() -> None:
    """Print the commands."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "status",
        type=cli.count(0, 255),
        metavar="STATUS",
        help="exit status with which training ended",
    )
    parser.add_argument(
        "unopened",
        type=cli.count(0),
        metavar="UNOPENED",
        nargs="?",
        default=0,
        help="starts in a row that failed before the run directory was opened",
    )
    args = parser.parse_args()
    print(commands(args.status, args.unopened), end="")


if __name__ == "__main__":
    cli.run(main)
