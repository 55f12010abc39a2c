"""Which jobs start again, in both ways to submit, with Slurm clients that only record calls."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gam_scale.errors import EndedByOthers, MistakeElsewhere, UserError
from gam_scale.launch import requeue

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """``slurm(state, status)``: job 5 is in ``state``, and srun ends with ``status``.

    It returns a function that lists the calls of scontrol requeue.
    """
    folder, calls = tmp_path / "bin", tmp_path / "requeued"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "5")

    def write(state: str, status: int = 0, train: str = ":"):
        scripts = {
            "squeue": f"echo {state}",
            "scontrol": f'[ "$1" = show ] && echo node1 || echo "$*" >>{calls}',
            "srun": f"{train}; exit {status}",
        }
        for name, text in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{text}\n")
            (folder / name).chmod(0o755)
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    return write


AGAIN = ["requeue incomplete 5"]


@pytest.mark.parametrize(
    ("status", "state", "asked"),
    [
        (0, "RUNNING", []),
        (2, "RUNNING", []),
        (75, "RUNNING", AGAIN),
        (1, "RUNNING", AGAIN),
        (137, "RUNNING", AGAIN),
        (75, "COMPLETING", []),
        (1, "PENDING", []),
        (1, "", []),
    ],
)
def test_what_starts_again(slurm, status, state, asked, capfd):
    requeued = slurm(state)
    requeue.end_job(status)
    assert requeued() == asked, f"status {status} of a job that is {state or 'unknown'}"
    said = f"job 5: training ended with status {status}, Slurm says {state or 'nothing'}\n"
    assert capfd.readouterr().out == said


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (EndedByOthers("rank 1 is gone"), AGAIN),
        (RuntimeError("a defect"), AGAIN),
        (OSError(errno.EIO, "the network"), AGAIN),
        (UserError("another run is there"), []),
        (MistakeElsewhere("rank 0 failed: UserError: another run is there"), []),
        (OSError(errno.ENOSPC, "full"), []),
    ],
)
def test_a_rank_of_submitit_asks_the_same_policy(slurm, monkeypatch, tmp_path, error, asked):
    job = pytest.importorskip("gam_scale.launch.job")
    in_turn = pytest.importorskip("gam_scale.train.in_turn")

    def fail(*args, **options):
        raise error

    requeued = slurm("RUNNING")
    monkeypatch.setattr(in_turn, "train_in_turn", fail)
    place = {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path)}
    monkeypatch.setattr(os, "environ", os.environ | place)  # the job sets variables, too
    with pytest.raises(type(error)):
        job.RankJob("config.json")()
    assert requeued() == asked


@pytest.mark.parametrize(
    ("status", "asked"), [(0, []), (requeue.STOPPED, AGAIN), (2, []), (137, AGAIN)]
)
def test_a_job_script_asks_it_too(slurm, tmp_path, status, asked):
    done = script(slurm("RUNNING", status), tmp_path)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.requeued == asked, done.stdout + done.stderr
    said = f"job 5: training ended with status {status}, Slurm says RUNNING"
    assert done.stdout.splitlines()[-1] == said, done.stdout + done.stderr


def test_slurms_clients_are_not_looked_for_in_the_jobs_container(slurm, tmp_path):
    container = tmp_path / "container"  # in which there is nothing but Python
    container.write_text('#!/bin/sh\nPATH=/nowhere exec "$@"\n')
    container.chmod(0o755)
    done = script(slurm("RUNNING", 1), tmp_path, GAM_CONTAINER=str(container))
    assert done.requeued == AGAIN, done.stdout + done.stderr


def test_a_job_that_began_with_older_code_is_decided_by_todays(slurm, tmp_path):
    older = tmp_path / "run" / "jobs" / "5" / "code"
    (older / "gam_scale").mkdir(parents=True)
    (older / "gam_scale" / "__init__.py").write_text("")
    shutil.copy(ROOT / "configs" / "quickstart.json", older)
    done = script(slurm("RUNNING", 75), tmp_path)
    assert done.requeued == AGAIN, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("status", "state", "asked"),
    [
        (0, "RUNNING", []),
        (2, "RUNNING", []),
        (137, "RUNNING", AGAIN),
        (requeue.STOPPED, "RUNNING", AGAIN),
        (137, "COMPLETING", []),
    ],
)
def test_where_python_cannot_start_any_more_the_shell_decides(
    slurm, tmp_path, status, state, asked
):
    python = tmp_path / "python"
    lost = 'case "$*" in *launch.requeue*) exit 127 ;; esac'
    python.write_text(f'#!/bin/sh\n{lost}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = script(slurm(state, status), tmp_path, GAM_PYTHON=str(python))
    assert done.returncode == status and "Python cannot start" in done.stderr, done.stderr
    assert done.requeued == asked, done.stdout + done.stderr


OPEN = 'mkdir -p "$RUN" && echo "$SLURM_RESTART_COUNT" >"$RUN/restarts.json"'


@pytest.mark.parametrize("lost", [False, True], ids=["python", "no python"])
def test_starts_that_never_open_the_run_end_after_the_third(slurm, tmp_path, lost):
    env = {"RUN": str(tmp_path / "run")}
    if lost:
        python = tmp_path / "python"
        end = 'case "$*" in *launch.requeue*) exit 127 ;; esac'
        python.write_text(f'#!/bin/sh\n{end}\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        env["GAM_PYTHON"] = str(python)

    def start(number, status, train=":"):
        count = {"SLURM_RESTART_COUNT": str(number)}
        return script(slurm("RUNNING", status, train), tmp_path, **env, **count)

    assert start(0, 1).requeued == AGAIN
    assert start(1, 1).requeued == 2 * AGAIN
    assert start(2, 1, OPEN).requeued == 3 * AGAIN, "this one opened it: a new count"
    assert start(3, 1).requeued == 4 * AGAIN
    assert start(4, 75).requeued == 5 * AGAIN, "a signal is no failure"
    assert start(5, 137).requeued == 6 * AGAIN
    done = start(6, 1)
    assert done.requeued == 6 * AGAIN and done.returncode == 1, done.stdout + done.stderr
    if not lost:
        assert "3 starts in a row ended before the run directory was opened" in done.stderr


def test_ranks_of_submitit_count_such_starts_too(tmp_path, monkeypatch):
    starts = pytest.importorskip("gam_scale.launch.starts")
    run, file = tmp_path / "run", tmp_path / "7_unopened"
    run.mkdir()

    def start(number, *, opens=False):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        ranks = [starts.Starts(file, [str(run)]) for _ in range(2)]
        if opens:
            (run / "restarts.json").write_text(f"{number}")
        return [rank.unopened() for rank in ranks]

    assert start(0) == [1, 1] and start(1) == [2, 2]
    assert start(2, opens=True) == [0, 0]
    assert start(3) == [1, 1]
    for count, again in ((2, True), (3, False)):
        assert ("scontrol requeue" in requeue.commands(1, count)) == again
        assert "scontrol requeue" in requeue.commands(requeue.STOPPED, count)


def test_a_task_of_an_array_is_meant_by_its_own_number(slurm, tmp_path, monkeypatch):
    """One task has the array's number as SLURM_JOB_ID, and that number means all tasks."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    task = ["requeue incomplete 5_3"]
    assert script(slurm("RUNNING", 75), tmp_path).requeued == task
    (tmp_path / "requeued").unlink()
    requeue.end_job(75)
    assert slurm("RUNNING")() == task


def test_what_common_sh_and_the_policy_share_is_the_same():
    text = (ROOT / "slurm" / "common.sh").read_text()
    (stopped,) = re.findall(r"^STOPPED=(\d+)", text, re.MULTILINE)
    assert int(stopped) == requeue.STOPPED and "--stopped-status $STOPPED" in text
    (unopened,) = re.findall(r"^UNOPENED=(\d+)", text, re.MULTILINE)
    assert int(unopened) == requeue.UNOPENED


def script(requeued, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run slurm/gam_1b.sh as Slurm does, with its run in ``folder``; ``requeued`` has the calls."""
    job = {
        "GAM_ROOT": str(ROOT),
        "GAM_PYTHON": sys.executable,
        "GAM_ARGS": f"--set log.run_dir={folder / 'run'}",
        "CONFIG": "configs/quickstart.json",
        "SLURM_JOB_NODELIST": "node1",
        "SLURM_JOB_NUM_NODES": "1",
    }
    command = ["/bin/bash", shutil.copy(ROOT / "slurm" / "gam_1b.sh", folder / "slurm_script")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | job | env, text=True, capture_output=True
    )
    done.requeued = requeued()
    return done
