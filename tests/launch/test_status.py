"""The status table: what became of a run, without Slurm's accounting."""

import io
import json
import signal
import subprocess
from dataclasses import asdict

import pytest

from gam_scale.errors import UserError
from gam_scale.launch.follow import cancel, follow, log_of
from gam_scale.launch.status import find_runs, status, table
from gam_scale.process import Process
from gam_scale.run.lock import RunLock, lock_path
from gam_scale.train.health import RankHealth


@pytest.fixture
def run(tmp_path):
    """A run directory that stands at step 30 of 40, with a checkpoint of step 20."""
    folder = tmp_path / "runs" / "mine"
    (folder / "logs").mkdir(parents=True)
    (folder / "jobs").mkdir()
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    (folder / "config.json").write_text('{"train": {"steps": 40}}')
    lines = [{"step": s, "loss": 9.0 - s / 10, "tokens_per_s": 1200.0} for s in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "restarts.json").write_text('{"job": "7", "step": 20, "total": 3}')
    return folder


def dead(run):
    content = {"host": "node1", "pid": 3, "job": "7", "token": "x", "beat": 4}
    lock_path(run).write_text(json.dumps(content))


def test_every_column(run):
    (row,) = table([status(run, None)])
    assert row[1:8] == ["stopped", "7", "30/40", "6.000", "1,200", "3", "step 20"]
    assert row[8:] == ["-", "-", "-"]  # a run of an older version: nothing was noted


def test_goodput_and_the_slowest_host(run):
    """Two starts: 50 s of steps that count in 200 s, 40 s from the last step to the next one."""
    start = {"step": 0, "ranks": 2, "job": "7", "again": False}
    again = {"step": 20, "again": True, "last_step": 25, "last_time": 1080.0, "trained": 1120.0}
    starts = [start | {"began": 1000.0, "trained": 1010.0}, start | {"began": 1105.0} | again]
    (run / "starts.json").write_text(json.dumps({"starts": starts}))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "time": 1200.0, "step_seconds": 50.0}) + "\n")
    ranks = [
        RankHealth(0, "node1", 0.002, 0.0, 1e9, 1e9, 0.5),
        RankHealth(1, "node2", 0.003, 0.0, 1e9, 1e9, 0.5),
    ]
    text = {"step": 40, "ranks": [asdict(each) for each in ranks]}
    (run / "ranks.json").write_text(json.dumps(text))
    (row,) = table([status(run, None)])
    assert row[8:] == ["25%", "40 s", "node2 1.5x"]


def test_running_holds_the_lock(run):
    with RunLock(run):
        assert status(run, None).state == "running"
    assert status(run, None).state == "stopped"


def test_killed_without_a_word_is_noticed(run):
    dead(run)
    assert status(run, None).state == "died"  # no Slurm
    assert status(run, {}).state == "died"  # Slurm has forgotten the job
    assert status(run, {"7": "NODE_FAIL"}).state == "died"


@pytest.mark.parametrize(
    "word, state", [("PENDING", "queued"), ("COMPLETING", "completing"), ("RUNNING", "running")]
)
def test_a_requeued_job_is_not_dead(run, word, state):
    dead(run)
    assert status(run, {"7": word}).state == state


def test_finished(run):
    (run / "summary.json").write_text("{}")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "loss": 4.0, "tokens_per_s": 1.0}\n')
    assert status(run, None).state == "finished"


def test_submitted_and_not_begun(tmp_path):
    folder = tmp_path / "new"
    (folder / "jobs").mkdir(parents=True)
    note = {"job": "9", "cluster": "slurm", "logs": str(folder / "jobs" / "9.out")}
    (folder / "jobs" / "launched.json").write_text(json.dumps(note))
    assert find_runs([tmp_path]) == [folder]
    assert status(folder, {"9": "PENDING"}).state == "queued"
    assert status(folder, {}).state == "never started"
    with pytest.raises(UserError, match="no log yet"):
        log_of(folder)


def test_runs_are_found_below_a_folder_and_checkpoints_are_none(run, tmp_path):
    checkpoint = run / "checkpoints" / "step-00000020"
    (checkpoint / "config.json").write_text("{}")
    assert find_runs([tmp_path]) == find_runs([tmp_path / "runs"]) == [run]
    with pytest.raises(UserError, match="no run here"):
        find_runs([checkpoint])


def test_cancelling_what_is_over_is_refused(run):
    with pytest.raises(UserError, match="is stopped; expected a run that is running"):
        cancel(run)


@pytest.fixture
def sleeper():
    """A process that sleeps and is killed after the test."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def note_of_local_job(run, **process):
    note = {"job": str(process["pid"]), "cluster": "local", "logs": "", "process": process}
    (run / "jobs" / "launched.json").write_text(json.dumps(note))


def test_cancelling_signals_the_process_that_was_started(run, sleeper):
    note_of_local_job(run, **asdict(Process.of(sleeper.pid)))
    assert status(run, None).state == "starting"
    assert cancel(run) == f"{run}: process {sleeper.pid} was asked to save and end"
    assert sleeper.wait(30) == -signal.SIGTERM
    assert status(run, None).state == "stopped", "an ended process counts as one that starts"


@pytest.mark.parametrize("other", [{"started": 7}, {"boot": "another"}, {"host": "elsewhere"}])
def test_another_process_with_the_pid_is_left_alone(run, sleeper, other):
    note_of_local_job(run, **asdict(Process.of(sleeper.pid)) | other)
    assert status(run, None).state == "stopped", "another process is taken for the run's"
    with RunLock(run), pytest.raises(UserError, match="not by a process that tools/launch.py"):
        cancel(run)
    assert sleeper.poll() is None, "another process was signalled"


def test_a_note_of_an_older_version_cannot_tell_the_process(run, sleeper):
    note = {"job": "5", "cluster": "local", "logs": "x", "pid": sleeper.pid}
    (run / "jobs" / "launched.json").write_text(json.dumps(note))
    assert status(run, {"5": "RUNNING"}).state == "stopped", "a pid is taken for a Slurm job"
    with pytest.raises(UserError, match="is stopped"):
        cancel(run)
    assert sleeper.poll() is None


def test_a_local_job_that_made_no_run_has_died(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "rank0.log").write_text("error: why\n")
    note = {"cluster": "local", "logs": str(tmp_path / "jobs" / "rank0.log")}
    note["process"] = {"pid": 1, "host": "elsewhere", "boot": "b", "started": 1}
    (tmp_path / "jobs" / "launched.json").write_text(json.dumps(note))
    said = io.StringIO()
    assert follow(tmp_path, said) == "died", "following it never ends"
    assert said.getvalue() == "error: why\n"


def test_a_script_that_has_begun_is_starting(tmp_path):
    (tmp_path / "jobs" / "31" / "code").mkdir(parents=True)
    assert status(tmp_path, {"31": "RUNNING"}).state == "starting"
    assert status(tmp_path, {}).state == "never started"
