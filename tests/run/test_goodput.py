"""Goodput and time to resume, against arithmetic by hand."""

import json
import os
import time

import pytest

from gam_scale.run import goodput as module
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import Start, goodput, note_first_step, note_start, read_starts


@pytest.fixture
def run(tmp_path):
    return RunDir(tmp_path)


def lines(run, *rows):
    """Write metrics.jsonl with ``rows`` of (step, time, step_seconds)."""
    text = [json.dumps(dict(zip(("step", "time", "step_seconds"), r, strict=True))) for r in rows]
    run.metrics.write_text("".join(row + "\n" for row in text))


def write(run, *starts):
    module._write(run.starts, list(starts))


def first(**changes):
    return Start(**{"began": 100.0, "step": 0, "ranks": 2, "job": "1", "again": False} | changes)


def test_nothing_is_known_before_the_first_line(run):
    assert goodput(run) is None
    write(run, first())
    assert goodput(run) is None
    run.metrics.write_text('{"step": 1}\n')  # of an older version
    assert goodput(run) is None


def test_one_start(run):
    write(run, first(trained=120.0))
    lines(run, (1, 120.0, 4.0), (9, 150.0, 30.0))
    found = goodput(run)
    assert (found.share, found.wall_seconds, found.starts) == (0.6, 50.0, 1)
    assert found.resumes == [] and found.resume_seconds is None


def test_a_branch_does_not_count_the_steps_of_its_trunk(run):
    write(run, first(step=5, trained=120.0))
    lines(run, (5, 50.0, 400.0), (6, 120.0, 404.0), (9, 150.0, 430.0))
    assert goodput(run).share == 0.6


def test_a_schedulers_restart_costs_all_of_its_time(run):
    again = first(
        began=175.0, step=6, again=True, last_step=9, last_time=150.0, trained=190.0, ranks=1
    )
    write(run, first(trained=120.0), again)
    lines(run, (6, 140.0, 20.0), (7, 190.0, 24.0), (12, 200.0, 40.0))
    found = goodput(run)
    assert (found.share, found.wall_seconds, found.starts) == (0.4, 100.0, 2)
    (resume,) = found.resumes
    assert (resume.seconds, resume.steps_again, resume.ranks) == (40.0, 3, 1)
    assert found.figures()["resume_seconds"] == [40.0] and found.figures()["steps_again"] == 3


def test_the_time_that_a_run_lay_still_is_not_its_own(run):
    later = first(began=5000.0, step=9, last_step=9, last_time=150.0, trained=5020.0)
    write(run, first(trained=120.0), later)
    lines(run, (9, 150.0, 30.0), (12, 5050.0, 60.0))
    found = goodput(run)
    assert (found.wall_seconds, found.share) == (100.0, 0.6)
    assert found.resumes[0].seconds == 20.0


def test_starts_that_train_nothing_prolong_the_interruption(run):
    """The second of three starts trains nothing; the third is a scheduler's, then a person's."""
    last = {"last_step": 9, "last_time": 150.0}
    second = first(began=175.0, step=6, again=True, **last)
    third = first(began=200.0, step=6, again=True, **last, trained=230.0)
    write(run, first(trained=120.0), second, third)
    lines(run, (7, 230.0, 25.0), (12, 250.0, 45.0))
    found = goodput(run)
    assert [each.seconds for each in found.resumes] == [80.0] and found.wall_seconds == 150.0
    third = first(began=1200.0, step=6, **last, trained=1230.0)
    write(run, first(trained=120.0), second, third)
    lines(run, (7, 1230.0, 25.0), (12, 1250.0, 45.0))
    found = goodput(run)
    assert [each.seconds for each in found.resumes] == [30.0]
    # 75 s up to the beginning of the start that failed, and 50 s of the third start.
    assert found.wall_seconds == 75.0 + 50.0


def test_what_a_start_notes(run, monkeypatch):
    before = time.time()
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(module, "_BEGAN", [])
    note_start(run, 0, 4)
    (start,) = read_starts(run.starts)
    assert start.began < before and start.began > before - 3600 * 24
    assert (start.ranks, start.again, start.last_time, start.trained) == (4, False, None, None)
    note_first_step(run)
    trained = read_starts(run.starts)[0].trained
    assert before <= trained <= time.time()
    note_first_step(run)  # after a roll-back
    assert read_starts(run.starts)[0].trained == trained
    lines(run, (6, 140.0, 20.0), (9, 150.0, 30.0))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    note_start(run, 6, 4)
    lines(run, (6, 140.0, 20.0))  # a start drops the lines past its step
    note_start(run, 6, 2)
    second, third = read_starts(run.starts)[1:]
    assert (second.last_step, second.last_time, second.again) == (9, 150.0, True)
    assert (third.last_step, third.last_time, third.ranks) == (9, 150.0, 2)


def test_a_second_run_of_a_process_begins_when_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEGAN", [])
    first, second = RunDir(tmp_path / "first"), RunDir(tmp_path / "second")
    for run in (first, second):
        run.path.mkdir()
    note_start(first, 0, 1)
    between = time.time()
    note_start(second, 0, 1)
    assert read_starts(first.starts)[0].began < between <= read_starts(second.starts)[0].began


def test_a_process_knows_when_it_began():
    elapsed = time.time() - module._process_start()
    assert elapsed >= time.process_time() / os.cpu_count() - 0.1
