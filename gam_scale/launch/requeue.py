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

What a user can mend is what the command line exits with status 2 for: :func:`gam_scale.cli.ending`.

The batch shell of slurm/common.sh asks, which outlives the ranks. The batch shell of a job of
tools/launch.py is submitit's, so its ranks ask: rank 0 after a signal, any rank after an error.

The answer is shell text. Slurm's clients are the host's, and the Python of a job may be in a
container, which has none.

``python -m gam_scale.launch.requeue STATUS`` prints it.
"""

import subprocess

from gam_scale import cli

STOPPED = 75
"""Exit status of training that a signal stopped, with its state saved (EX_TEMPFAIL)."""

_LOOK = """\
state=$(squeue -h -j "$SLURM_JOB_ID" -o %T 2>/dev/null)
echo "job $SLURM_JOB_ID: training ended with status {status}, Slurm says ${{state:-nothing}}"
"""
# Cancelled, or requeued by Slurm already (then it is completing or pending): not ours to requeue.
# The word `incomplete` has the controller refuse what was cancelled since squeue looked.
_REQUEUE = """\
[ "$state" != RUNNING ] || scontrol requeue incomplete "$SLURM_JOB_ID"
"""


def starts_again(status: int) -> bool:
    """Whether a job does whose training ended with exit ``status``."""
    return status not in (0, cli.EXIT_USER_ERROR)


def commands(status: int) -> str:
    """Shell lines, for the host that a job runs on: say how it ended, and requeue it if need be.

    They requeue a job that Slurm calls RUNNING, and leave alone one that it is ending already.
    """
    return _LOOK.format(status=status) + (_REQUEUE if starts_again(status) else "")


def end_job(status: int) -> None:
    """Do it, from a rank that is in no container."""
    subprocess.run(["sh", "-c", commands(status)])


def main() -> None:
    """Print the commands."""
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "status", type=cli.count(0, 255), metavar="STATUS", help="with which training ended"
    )
    print(commands(parser.parse_args().status), end="")


if __name__ == "__main__":
    cli.run(main)
