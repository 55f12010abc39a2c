"""Test a grid of small real runs: its cells' costs and states, and what it does on failure."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from gam_scale.config import RunConfig
from gam_scale.experiment.cell import Cell, Row, changed_setting
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.training import train
from gam_scale.files import write_json
from gam_scale.model.lm import outline
from gam_scale.run.figures import read_summary
from gam_scale.run.lock import RunLock
from gam_scale.strict import from_dict, to_dict


@dataclass(frozen=True, kw_only=True)
class RateCell(Cell):
    """A run at one learning rate, from one seed."""

    @property
    def name(self) -> str:
        return f"lr{self.config.train.lr:g}-s{self.seed}"

    def write_config(self) -> Path:
        self.config_path.parent.mkdir(exist_ok=True)
        write_json(self.config_path, to_dict(self.config))
        return self.config_path

    def row(self) -> Row | None:
        path = self.run_dir / "summary.json"
        return {"loss": read_summary(path)["val_loss"]} if path.exists() else None


@pytest.fixture
def cell(tiny, tmp_path):
    """Return a function: ``cell(lr, seed, section={...})`` makes a cell of 4 steps."""

    def make(lr: float = 1e-3, seed: int = 0, **changes: dict) -> RateCell:
        train = {"steps": 4, "lr": lr, "seed": seed, "warmup_steps": 1} | changes.pop("train", {})
        changes |= {"train": train, "model": {"vocab_size": 320}}
        config = from_dict(RunConfig, tiny(tmp_path / f"{lr:g}-{seed}", **changes))
        return RateCell(seed=seed, config=config, folder=tmp_path, epoch_tokens=1000)

    return make


def test_a_job_that_fails_is_named_and_the_others_go_on(cell, capfd, tmp_path):
    lost = cell(seed=1, data={"sets": [{"path": str(tmp_path / "nothing")}]})
    grid = Grid([[lost], [cell(1e-3), cell(2e-3)]])
    assert [each.state() for each in grid.cells] == ["absent"] * 3 and len(grid.missing()) == 3
    assert train(grid) == [lost]
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "[1/2] lr0.001-s1" and said[1].startswith("  status 2, error: ")
    assert said[2] == f"  unfinished: lr0.001-s1; {tmp_path / 'configs' / 'lr0.001-s1.log'}"
    assert said[3:] == [
        "[2/2] lr0.001-s0, lr0.002-s0",
        "1 runs are unfinished; the same command goes on with them",
    ]
    done = grid.finished()
    assert {each.name for each, _ in done} == {"lr0.001-s0", "lr0.002-s0"}
    assert all(row["loss"] > 0 and each.state() == "finished" for each, row in done)
    assert grid.missing().jobs == [[lost]]


def test_states_of_a_cell_that_is_not_finished(cell):
    one = cell()
    assert one.state() == "absent"
    one.run_dir.mkdir()
    assert one.state() == "unfinished"
    with RunLock(one.run_dir):
        assert one.state() == "training"
    assert one.state() == "unfinished"


def test_what_cells_cost(cell):
    one = cell()
    per_token = 3 * outline(one.config.model).flops_per_token(48)
    assert one.tokens == 4 * 4 * 48 and one.own_flops == one.flops == per_token * one.tokens
    epochs = cell(train={"steps": 0, "epochs": 2.5, "warmup_steps": 0})
    assert epochs.tokens == 2.5 * 1000
    branch = cell(
        train={"steps": 40, "schedule": "wsd", "decay_ratio": 0.25},
        checkpoint={"branch_of": str(one.run_dir)},
    )
    assert branch.shared_steps == 30
    assert branch.own_flops == pytest.approx(per_token * 10 * 4 * 48)
    assert Grid([[branch, one]]).cells == [one, branch], "the cheapest is not first"


def test_a_setting_of_another_experiment_is_named(cell):
    config = cell().config
    saved = to_dict(config)
    assert changed_setting(saved, config, ("model", "train")) is None
    saved["train"]["compile"] = "on"  # changes the speed, not the run
    del saved["train"]["grad_clip"]  # saved before the setting existed
    assert changed_setting(saved, config, ("model", "train")) is None
    del saved["model"]["attention"]["n_kv_heads"]
    assert changed_setting(saved, config, ("model", "train")) is None
    saved["model"]["attention"]["n_heads"] = 3
    assert changed_setting(saved, config, ("model",)) == "model.attention.n_heads"
    saved["model"]["d_model"] = 8
    assert changed_setting(saved, config, ("model",)) == "model.d_model"
    saved["data"]["seq_len"] = 7
    assert changed_setting(saved, config, ("train",)) is None
    assert changed_setting(saved, config, ("data",)) == "data.seq_len"
