"""Restarts are counted, and a run that makes no progress ends with the reason."""

import pytest
from whole_runs import train

from gam_scale.errors import UserError
from gam_scale.run.restarts import count_start, last_error, read_restarts, restart_number
from gam_scale.train import pretrain as pretraining


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return ``start(number, step)``, which counts restart ``number`` of a job, from ``step``."""
    (tmp_path / "logs").mkdir()

    def count(number, step, most=2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        monkeypatch.setenv("SLURM_JOB_ID", "5")
        return count_start(tmp_path / "restarts.json", step, most, tmp_path / "logs")

    return count


def test_progress_begins_the_count_anew(tmp_path, start):
    for number, step, without in ((0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 50, 0), (4, 50, 1)):
        assert start(number, step).without_progress == without
    assert read_restarts(tmp_path / "restarts.json").total == 4


def test_a_crash_loop_ends_with_the_last_error(tmp_path, start):
    log = tmp_path / "logs" / "rank1.log"
    log.write_text("2026-01-01 10:00:00,000 ERROR rank 1: RuntimeError: out of memory\n")
    for number in range(3):
        start(number, 40)
    with pytest.raises(UserError, match="2 restarts in a row.*past step 40.*out of memory"):
        start(3, 40)


def test_a_person_may_start_it_any_number_of_times(start):
    for _ in range(9):
        assert start(0, 40).without_progress == 0


def test_any_number_with_0(start):
    for number in range(9):
        start(number, 0, most=0)


def test_the_newest_error_of_all_ranks_counts(tmp_path):
    assert last_error(tmp_path) is None
    for rank, minute in ((0, 3), (1, 5), (2, 4)):
        text = f"2026-01-01 10:0{minute}:00,000 ERROR rank {rank} failed\n"
        (tmp_path / f"rank{rank}.log").write_text(text)
    assert last_error(tmp_path) == "rank 1 failed"


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_count_that_is_no_number_is_named(name):
    assert restart_number({name: "3"}) == 3 and restart_number({name: ""}) == 0
    with pytest.raises(UserError, match=f"{name} is .?x.? in the environment; expected a number"):
        restart_number({name: "x"})


def test_a_start_that_ends_before_it_trains_is_counted(tmp_path, tiny, monkeypatch):
    """Otherwise a job that always fails before its first step would be requeued for ever."""
    run = tiny(tmp_path / "run", checkpoint={"max_restarts": 2})

    def build_strategy(*args, **options):
        raise RuntimeError("the same at every start")

    monkeypatch.setattr(pretraining, "build_strategy", build_strategy)
    for number in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        with pytest.raises(RuntimeError):
            train(run)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(UserError, match="2 restarts in a row.*the same at every start"):
        train(run)


def test_restarts_of_a_finished_run_are_not_counted(tmp_path, tiny, monkeypatch):
    """A job that trains several runs starts the finished ones again at each restart."""
    run = tiny(tmp_path / "run", checkpoint={"max_restarts": 1}, train={"steps": 4})
    for number in range(4):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        train(run)
    assert read_restarts(tmp_path / "run" / "restarts.json").total == 0
