"""The status table: what became of a run, without Slurm's accounting."""

import json
from dataclasses import asdict

import pytest

from gam_scale.errors import UserError
from gam_scale.launch.follow import cancel, log_of
from gam_scale.launch.status import find_runs, status, table
from gam_scale.train.health import RankHealth
from gam_scale.train.lock import RunLock, lock_path


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
