"""A signal at any moment stops a run at once: it is saved, and its curve stays the same."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks import run_ranks
from whole_runs import assert_equal_runs, train

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.data.stream import TrainStream
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.run.goodput import read_starts
from gam_scale.run.metrics_file import read_metrics
from gam_scale.run.records import LAYERS, SAMPLES, read_records
from gam_scale.train import pretrain as pretraining
from gam_scale.train.in_turn import train_in_turn


@contextmanager
def stopped_in_evaluation(number: int) -> Iterator[list[list[str]]]:
    """Send this process a SIGTERM before the ``number``-th batch evaluated inside; 0: never.

    Yields a list that gets, at each batch, the names of the process's threads.
    """
    original, evaluated = PlainStrategy.evaluate, []

    def evaluate(self, batch):
        evaluated.append([thread.name for thread in threading.enumerate()])
        if len(evaluated) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainStrategy, "evaluate", evaluate)
        yield evaluated


def best(run: Path) -> dict:
    return json.loads((run / "checkpoints" / "best.json").read_text())


@pytest.mark.parametrize("number", [1, 2])
def test_a_signal_in_an_evaluation_is_seen_between_its_batches(tmp_path, tiny, curve, number):
    """The signals come in the evaluation at step 10 and, after resuming, twice in the last one."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    with stopped_in_evaluation(0) as evaluated:
        train(tiny(whole))
    batches = len(evaluated) // 2
    assert batches > 2
    store = CheckpointStore(run / "checkpoints")
    for step, before in ((10, 0), (20, batches), (20, 0)):
        with stopped_in_evaluation(before + number) as evaluated:
            train(tiny(run))
        assert len(evaluated) == before + number, "the evaluation went on after the signal"
        assert store.steps()[-1] == step and load_state(store.latest()).to_evaluate
        assert not (run / "summary.json").exists()
    with stopped_in_evaluation(0) as evaluated:
        train(tiny(run))
    assert not any("first step" in names for names in evaluated), (
        "an evaluation is said to be a first step"
    )
    lines = {line["step"]: line for line in read_metrics(run / "metrics.jsonl")}
    for step in 10, 20:  # evaluated at the beginning of a start
        assert lines[step]["tokens_per_s"] is lines[step]["mfu"] is None, "speed without training"
    starts = read_starts(run / "starts.json")
    assert all(start.trained for start in starts), "a start that only evaluates is unknown"
    assert_equal_runs(whole, run, curve)
    assert best(run) == best(whole)
    for name in "val_loss", "last_loss", "tokens", "sample":
        ours, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, whole))
        assert ours[name] == theirs[name]
    with stopped_in_evaluation(0) as evaluated:
        train(tiny(run))
    assert not evaluated, "a finished run is not evaluated again"


def test_what_was_written_before_an_evaluation_gave_way_is_there_once(tmp_path, tiny):
    """The resumed run makes the samples again, and cannot make the layers' statistics again."""
    short = {"eval": {"every_steps": 4}, "train": {"steps": 6}}
    log = {"layers_every": 2, "sample_every": 2, "tensorboard": True}
    runs = {name: tmp_path / name for name in ("whole", "run")}
    train(tiny(runs["whole"], log=log, **short))
    with stopped_in_evaluation(1):
        train(tiny(runs["run"], log=log, **short))
    assert load_state(CheckpointStore(runs["run"] / "checkpoints").latest()).to_evaluate
    train(tiny(runs["run"], log=log, **short))
    for name in LAYERS, SAMPLES:
        one, other = (read_records(run / name) for run in runs.values())
        assert [record["step"] for record in other] == [2, 4, 6], name
        assert other == one, name
    assert drawn(runs["run"]) == drawn(runs["whole"])


def drawn(run: Path) -> list[int]:
    """Return the steps at which TensorBoard has a layer's median."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(run / "logs/tensorboard")).Reload()
    return [event.step for event in events.Scalars("layers.memory_gate/00")]


def test_a_signal_while_data_is_waited_for_is_seen_at_once(
    tmp_path, tiny, whole, curve, monkeypatch
):
    """The batches of step 9 come only once the run has saved its state."""
    expected = whole()
    original, store = TrainStream.sequences, CheckpointStore(tmp_path / "run" / "checkpoints")
    saved = []

    def sequences(self, start, count, stage):
        if start == 8 * 4:
            while 7 not in lines():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            deadline = time.monotonic() + 30
            while max(store.steps(), default=0) < 7 and time.monotonic() < deadline:
                time.sleep(0.01)
            saved.append(max(store.steps(), default=0))
        return original(self, start, count, stage)

    def lines() -> list[int]:
        return [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]

    monkeypatch.setattr(TrainStream, "sequences", sequences)
    train(tiny(tmp_path / "run", log={"every_steps": 7}))
    monkeypatch.undo()
    # Asserted here, since an error in the reading thread is lost once the run has ended.
    assert len(saved) == 1 and saved[0] in (7, 8), "a signal is not seen while data is waited for"
    assert store.steps()[-1] == saved[0]
    train(tiny(tmp_path / "run"))
    assert curve(tmp_path / "run")[-1] == curve(expected)[-1]


def test_a_signal_before_training_began_leaves_a_run_to_start(
    tmp_path, tiny, whole, curve, monkeypatch
):
    expected = whole()
    original = pretraining.build_strategy

    def build_strategy(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    monkeypatch.setattr(pretraining, "build_strategy", build_strategy)
    train(tiny(tmp_path / "run"))
    assert not CheckpointStore(tmp_path / "run" / "checkpoints").steps()
    monkeypatch.undo()
    train(tiny(tmp_path / "run"))
    assert_equal_runs(expected, tmp_path / "run", curve)


def test_a_signal_between_two_runs_of_a_process_counts(tmp_path, tiny, monkeypatch):
    configs = []
    for name in "first", "second":
        configs.append(str(tmp_path / f"{name}.json"))
        Path(configs[-1]).write_text(json.dumps(tiny(tmp_path / name, train={"steps": 3})))
    monkeypatch.setattr(
        pretraining, "show_summary", lambda run: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert train_in_turn(configs) is False
    assert (tmp_path / "first" / "summary.json").exists()
    assert not CheckpointStore(tmp_path / "second" / "checkpoints").steps()


def only_one_rank_is_stopped(world, whole, run):
    """Stop rank 1 in an evaluation, then resume; return the checkpoint's (to_evaluate, step)."""
    train(whole)
    with stopped_in_evaluation(1 if world.rank == 1 else 0):
        train(run)
    state = load_state(CheckpointStore(Path(run["log"]["run_dir"]) / "checkpoints").latest())
    train(run)
    return state.to_evaluate, state.step


def test_ranks_give_way_together_where_one_is_asked_to_stop(tmp_path, tiny, curve):
    configs = {name: tiny(tmp_path / name, model={"n_layers": 1}) for name in ("whole", "run")}
    assert run_ranks(only_one_rank_is_stopped, 2, **configs) == [[True, 10]] * 2
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", curve)
