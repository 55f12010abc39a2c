"""Named validation sets: each has a curve, none changes the run, and one may choose the best."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentences
from engines import ENGINES
from ranks import run_ranks
from whole_runs import assert_equal_runs, killed_after, measured, train

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore, best_checkpoint
from gam_scale.config import DataSetConfig
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source
from gam_scale.data.stream import open_split, valid_batches
from gam_scale.errors import UserError
from gam_scale.evaluate.by_set import RowSets, mean_losses
from gam_scale.evaluate.loss import mean_loss, pad_rows
from gam_scale.parallel.world import World

CPU = torch.device("cpu")


class Unsummed(World):
    """One of several ranks whose ``sum`` stays local: the test adds up the ranks' values."""

    def sum(self, *values: float) -> list[float]:
        return list(values)


@pytest.fixture(scope="module")
def songs(tmp_path_factory, prepared_set) -> Path:
    """Prepare a second data set with the first one's tokenizer, and with a test split too."""
    folder, texts = tmp_path_factory.mktemp("other"), []
    for seed in (100, 101, 102):
        (folder / f"{seed}.txt").write_text(sentences(seed, 60))
        texts.append([parse_source(str(folder / f"{seed}.txt"))])
    model, out = prepared_set / "tokenizer.model", folder / "songs"
    prepare(PrepareSpec(out, texts[0], texts[1], texts[2], tokenizer=model))
    return out


@pytest.fixture(scope="module")
def mix(prepared_set, songs) -> dict:
    """Return changes of a config: two data sets, and two more validation sets by name."""
    return {
        "model": {"dropout": 0.0},
        "data": {"sets": [{"path": str(prepared_set)}, {"path": str(songs)}]},
        "train": {"steps": 10},
        "eval": {
            "every_steps": 4,
            "max_tokens": 400,
            "batch_size": 3,
            "sets": {"test": {"path": str(songs), "split": "test"}, "all": {"split": "valid"}},
        },
        "checkpoint": {"every_steps": 2, "keep_last": 1, "best": "test"},
    }


def train_on_ranks(world, config):
    train(config)


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_the_mean_is_what_it_was_and_its_parts_are_those_of_its_sets(prepared_set, songs, readers):
    """Each target's loss follows from its id; a batch of three rows may span two sets."""
    splits = open_split(
        [DataSetConfig(str(path)) for path in (prepared_set, songs, prepared_set)], "valid", "none"
    )
    token_bytes, size = np.arange(320) % 7, (48, "reset", 3)

    def loss_sum(batch):
        return (batch.targets[batch.targets >= 0] + 0.25).sum().double()

    sums = np.zeros((4, 3))
    for reader in range(readers):
        batches = valid_batches(splits, *size, reader, readers, 700)
        world = Unsummed(reader, readers, 0, 1, CPU)
        row_sets = RowSets([split.tokens for split in splits], 48, 700, 3, readers)
        full = (pad_rows(batch, 3) for batch in batches)
        mean, parts = mean_losses(loss_sum, full, token_bytes, world, row_sets, 3)
        sums += [(one.loss * one.tokens, one.tokens, one.bytes) for one in (mean, *parts)]
    alone = World(0, 1, 0, 1, CPU)
    whole = mean_loss(loss_sum, valid_batches(splits, *size, 0, 1, 700), token_bytes, alone)
    assert sums[0].tolist() == pytest.approx([whole.loss * whole.tokens, whole.tokens, whole.bytes])
    for split, part in zip(splits, sums[1:], strict=True):
        limit = int(part[1])
        one = mean_loss(loss_sum, valid_batches([split], *size, 0, 1, limit), token_bytes, alone)
        assert 200 < limit <= 700 // 3 + 1
        assert part.tolist() == pytest.approx([one.loss * one.tokens, one.tokens, one.bytes])


def test_ranks_meet_in_as_many_passes():
    row_sets = RowSets([100, 60, 300], seq_len=10, max_tokens=0, batch_size=4, readers=2)
    assert [row_sets.sets_of_rows(1, i).tolist() for i in (0, 1)] == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert [len(row_sets.sets_of_rows(5, i)) for i in (0, 1)] == [4, 2]
    assert [row_sets.max_sets(turn) for turn in range(6)] == [1, 2, 1, 1, 1, 1]


def test_each_set_has_its_curve_and_one_of_them_says_what_is_best(tmp_path, tiny, mix, songs):
    run = tmp_path / "run"
    train(tiny(run, **mix))
    found = measured("val_", run)
    assert sorted(found) == [4, 8, 10]
    names = {key.partition("/")[2] for key in found[4] if key.startswith("val_loss/")}
    assert names == {"prepared", "songs", "test", "all"}
    best = min(found, key=lambda step: found[step]["val_loss/test"])
    state = load_state(best_checkpoint(run))
    assert (state.step, state.best_of) == (best, "test")
    assert state.best_val_loss == found[best]["val_loss/test"]
    assert CheckpointStore(run / "checkpoints").steps() == sorted({best, 10})
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_loss/songs"] == found[10]["val_loss/songs"]
    page, log = ((run / name).read_text() for name in ("report.html", "logs/rank0.log"))
    assert "Loss by set" in page and "val loss of songs" in log
    # The run's loss is the mean of the two sets' losses: both have equally many tokens.
    parts = [found[10][f"val_loss/{name}"] for name in ("prepared", "songs")]
    assert np.mean(parts) == pytest.approx(found[10]["val_loss"], rel=1e-6)
    # "all" is the same text, read as a set of its own.
    assert found[10]["val_loss/all"] == found[10]["val_loss"]


def test_names_leave_the_run_and_its_mean_as_they_are(tmp_path, tiny, mix, curve):
    names = mix["eval"]
    train(tiny(tmp_path / "plain", **mix | {"eval": names | {"sets": {}}, "checkpoint": {}}))
    with killed_after(9):
        train(tiny(tmp_path / "run", **mix))
    train(tiny(tmp_path / "run", **mix))
    assert_equal_runs(tmp_path / "plain", tmp_path / "run", curve)
    train(tiny(tmp_path / "whole", **mix))
    assert measured("val_", tmp_path / "run") == measured("val_", tmp_path / "whole")


@pytest.mark.parametrize("engine", ["fsdp", "torch-context"])
def test_ranks_find_the_same(tmp_path, tiny, mix, whole, engine):
    short = mix | {"train": {"steps": 2, "warmup_steps": 1}}
    one = measured("val_", whole(**short))
    parallel = ENGINES[engine] | {"device": "cpu"}
    run_ranks(train_on_ranks, 2, config=tiny(tmp_path / "two", parallel=parallel, **short))
    two = measured("val_", tmp_path / "two")
    for step, figures in one.items():
        # Sums of float32 in another order.
        assert two[step] == pytest.approx(figures, rel=1e-5)


def test_the_best_by_another_set_counts_anew(tmp_path, tiny, mix):
    run = tmp_path / "run"
    with killed_after(9):
        train(tiny(run, **mix))
    train(tiny(run, **mix | {"checkpoint": mix["checkpoint"] | {"best": "songs"}}))
    state = load_state(best_checkpoint(run))
    assert (state.step, state.best_of) == (10, "songs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval": {"sets": {"songs": {"split": "test"}}}}, "eval.sets.songs has the name of a set"),
        ({"eval": {"sets": {"a b": {"split": "test"}}}}, 'the name "a b"; expected letters'),
        ({"eval": {"sets": {"t": {"split": "train"}}}}, "eval.sets.t is the train split"),
        ({"eval": {"sets": {"t": {"path": "none"}}}}, "eval.sets.t: none"),
        ({"eval": {"sets": {"t": {"split": "test"}}}}, "eval.sets.t: .* has no split 'test'"),
        ({"checkpoint": {"best": "x"}}, 'checkpoint.best is "x"; expected .*: prepared, songs'),
        (
            {"checkpoint": {"best": "songs", "keep_best": False}},
            'checkpoint.best is "songs" but checkpoint.keep_best is false',
        ),
    ],
)
def test_what_cannot_be_validated_on(tmp_path, tiny, mix, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny(tmp_path / "run", data=mix["data"], **changes))
    assert not (tmp_path / "run" / "config.json").exists()


def test_no_best_checkpoint_is_a_sentence(whole):
    with pytest.raises(UserError, match="has no best checkpoint; expected a run directory whose"):
        best_checkpoint(whole(eval={"every_steps": 0}, checkpoint={"keep_best": False}))
