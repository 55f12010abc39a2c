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
=====================================  ========================================================

A mistake that a user can mend is one for which the command line exits with status 2:
:func:`gam_scale.cli.ending`.

In jobs of slurm/*.sh the batch shell, slurm/common.sh, asks this module, since it outlives the
ranks. In jobs of tools/launch.py the batch shell is submitit's, so the ranks ask: rank 0 after a
signal, any rank after an error.

The answer is shell text for the host to run, which has Slurm's clients; a job's Python may be in a
container, which has none. ``python -m gam_scale.launch.requeue STATUS`` prints the answer.
"""

import subprocess

from gam_scale import cli

STOPPED = 75
"""Exit status of training that a signal stopped, with its state saved (EX_TEMPFAIL)."""

_LOOK = """\
state=$(squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null)
echo "job $SLURM_JOB_ID: training ended with status {status}, Slurm says ${{state:-nothing}}"
"""
# A job that was cancelled, or that Slurm itself has requeued (it is then completing or pending), is
# left alone. With `incomplete` the controller refuses a job that was cancelled since squeue looked.
_REQUEUE = """\
[ "$state" != RUNNING ] || scontrol requeue incomplete "$SLURM_JOB_ID"
"""


def starts_again(status: int) -> bool:
    """Whether a job starts again whose training ended with exit status ``status``."""
    return status not in (0, cli.EXIT_USER_ERROR)


def commands(status: int) -> str:
    """Return shell lines for a job's host, which say how it ended and requeue it if need be.

    They requeue a job that Slurm calls RUNNING, and leave alone a job that Slurm is ending already.
    """
    return _LOOK.format(status=status) + (_REQUEUE if starts_again(status) else "")


def end_job(status: int) -> None:
    """Run :func:`commands`, from a rank that is in no container."""
    subprocess.run(["sh", "-c", commands(status)])


def main() -> None:
    """Print the commands."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "status",
        type=cli.count(0, 255),
        metavar="STATUS",
        help="exit status with which training ended",
    )
    print(commands(parser.parse_args().status), end="")


if __name__ == "__main__":
    cli.run(main)
