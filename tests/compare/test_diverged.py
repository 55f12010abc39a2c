"""Test that a run that diverges blocks neither its comparison nor the pages."""

import json
import math

import pytest
from compare.test_comparison import TEXT, written

from gam_scale.compare import text_tables
from gam_scale.compare.comparison import Comparison
from gam_scale.compare.continued_models import continued_models
from gam_scale.compare.spec import ModelEntry, TextSpec, read_spec
from gam_scale.errors import Diverged, UserError
from gam_scale.experiment.kept import read_rows, write_rows
from gam_scale.experiment.results import keep_row, kept_row, kept_rows
from gam_scale.experiment.spread import Spread
from gam_scale.train.in_turn import train_in_turn

FAR_TOO_HIGH = 1e30
ROW = {
    "seed": 0, "parameters": 9, "memory": 1, "state": 1, "tokens": 1000, "lr": 1e-3,
    "val_bits_per_byte": 1.0, "tokens_per_s": 10, "val_curve": [[500, 4.0], [750, 3.0]],
}  # fmt: skip
LOST = ROW | {"val_loss": None, "val_bits_per_byte": None, "tokens": 10, "tokens_per_s": None}


@pytest.fixture
def compared(tmp_path, prepared_set):
    """Return ``compared(folder, **values)``: a comparison of one model in ten steps."""

    def make(folder: str = "out", **values) -> Comparison:
        train = TEXT["set"]["train"] | {"max_skipped_steps": 2}
        models = {"static": TEXT["models"]["static"] | {"against": "", "lrs": []}}
        text = TEXT | {"data": str(prepared_set), "models": models, "repeat": 0, "widen": 0}
        text |= {"set": TEXT["set"] | {"train": train}, "tune_tokens": 960, "tokens": 960}
        return Comparison(read_spec(written(tmp_path, text | values)), tmp_path / folder)

    return make


def trained(comparison: Comparison) -> list[str]:
    """Train all runs that are missing, each once; return the names of those that diverged."""
    begun, diverged = set(), []
    while jobs := [job for job in comparison.missing().jobs if job[0].name not in begun]:
        for (cell,) in jobs:
            begun.add(cell.name)
            try:
                train_in_turn([str(cell.write_config())])
            except Diverged:
                diverged.append(cell.name)
    return diverged


def test_a_rate_at_which_training_diverges_is_the_last_and_the_others_go_on(compared, run_tool):
    comparison = compared(lrs=[1e-3, FAR_TOO_HIGH], measure={})
    assert trained(comparison) == ["static-tune-lr1e+30-s0"]
    rows = comparison.rows()
    assert [r["stage"] for r in rows] == ["tune", "tune", "full", "full"]
    assert {r["lr"] for r in rows if r["stage"] == "full"} == {1e-3}
    (lost,) = (r for r in rows if r["lr"] == FAR_TOO_HIGH)
    assert lost["val_loss"] is lost["val_bits_per_byte"] is None and lost["tokens"] < 960
    assert not comparison.missing(), "what has diverged is trained again"
    spec = comparison.folder.parent / "spec.json"
    assert run_tool("compare", "page", "--spec", spec, "--out", comparison.folder) == 0
    page = (comparison.folder / "page" / "report.md").read_text()
    assert "| diverged | 0.001 (edge) |" in page


def test_a_further_seed_that_diverges_is_said_and_not_measured(compared, run_tool):
    comparison = compared(lrs=[1e-3], tune_tokens=0, measure={"positions": [32]})
    (cell,) = comparison.cells()
    train_in_turn([str(cell.write_config())])
    summary = json.loads((path := cell.run_dir / "summary.json").read_text())
    path.write_text(json.dumps(summary | {"val_loss": None, "val_bits_per_byte": None}))
    assert cell.row()["val_loss"] is None and cell.row()["tokens"] == 960
    names = [cell.name for cell in comparison.cells()]
    assert names == [cell.name, cell.name.replace("-s0", "-s1")], "it is measured"
    path.write_text(json.dumps({k: v for k, v in summary.items() if k != "val_loss"}))
    (comparison.folder / "results" / f"{cell.name}.json").unlink()
    with pytest.raises(UserError, match="val_loss is missing; expected the summary of a finished"):
        cell.row()


def test_a_run_that_starts_again_is_no_longer_noted_as_diverged(compared):
    comparison = compared(lrs=[FAR_TOO_HIGH], tune_tokens=0, seeds=[0], measure={})
    (cell,) = comparison.cells()
    for _ in range(2):  # the second start takes the note away, and leaves one of its own
        with pytest.raises(Diverged, match="had no finite gradient"):
            train_in_turn([str(cell.write_config())])
        note = json.loads((cell.run_dir / "diverged.json").read_text())
        assert "had no finite gradient" in note["reason"] and 0 < note["step"] < 10
        (cell.run_dir / "diverged.json").write_text('{"step": 0, "reason": "old"}')
    assert comparison.rows()[0]["val_loss"] is None
    with pytest.raises(UserError, match="not diverged, of 0 models without attention"):
        continued_models(TextSpec(start_best=1), comparison.folder)


def test_tables_and_figures_say_which_runs_diverged():
    full = {
        "lost": [LOST],
        "half": [ROW | {"val_loss": 2.5}, LOST | {"seed": 1}],
        "best": [ROW | {"val_loss": 1.5}],
    }
    table = text_tables.losses(full, "half")
    shown = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(shown) == ["best", "lost", "half"]
    assert shown["lost"]["loss"] == shown["lost"]["bits/byte"] == "diverged"
    assert shown["half"]["loss"] == "1 of 2 diverged" and shown["half"]["tokens"] == "1k"
    assert {row["less half"] for row in shown.values()} == {""}, "a difference from infinity"
    against = {name: ModelEntry(against="best") for name in ("lost", "half")}
    spec = TextSpec(models={"best": ModelEntry()} | against, reference="half")
    reached = {row[0]: row for row in text_tables.equal_loss(full, spec).rows}
    assert reached["lost"][3] == reached["half"][3] == "not reached"
    tuned = [LOST | {"lr": 1.0}, ROW | {"lr": 0.1, "val_loss": 2.0}]
    table = text_tables.rates({"mixed": tuned, "lost": [LOST | {"lr": 0.1}]}, "Learning rates")
    assert table.rows == [
        ["mixed", "2.0000", "diverged", "0.1 (edge)"],
        ["lost", "diverged", "", ""],
    ]
    assert "after 1k tokens" in table.note
    assert text_tables.learning(full | {"lost": [LOST | {"val_curve": []}]}).draw is not None


def test_a_spread_with_a_run_that_diverged_has_no_difference():
    some, lost = Spread.of([1.0, 2.0]), Spread.of([1.0, math.nan, None])
    assert lost.text() == "2 of 3 diverged" and lost.mean == math.inf and lost.seeds == 3
    assert some.difference(lost) is lost.difference(some) is some.over(lost) is None


def test_a_set_without_validation_is_refused_before_any_run(compared, prepared_set, tmp_path):
    folder = tmp_path / "unvalidated"
    folder.mkdir()
    manifest = json.loads((prepared_set / "manifest.json").read_text())
    manifest["splits"].pop("valid")
    manifest.pop("checksum", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="has no valid split; expected one made by"):
        compared(data=str(folder)).cells()


def test_rows_are_kept_as_json_and_those_of_earlier_versions_are_still_read(tmp_path):
    row = ROW | {"model": "a", "stage": "full", "val_loss": math.inf, "bins": [[1, 2, math.nan]]}
    kept = keep_row(tmp_path, "now", row)
    assert kept["val_loss"] is None and kept["bins"] == [[1, 2, None]] and kept["tokens"] == 1000
    assert kept_row(tmp_path, "now") == kept
    (tmp_path / "results" / "before.json").write_text(json.dumps(row))
    before = kept_rows(tmp_path)["before"]
    assert before["val_loss"] == math.inf
    write_rows([kept, before], tmp_path)
    assert "NaN" not in (text := (tmp_path / "results.jsonl").read_text()) and "Inf" not in text
    assert read_rows(tmp_path / "results.jsonl") == [kept, kept]
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    (old,) = read_rows(tmp_path / "results.jsonl")
    assert "diverged" in str(text_tables.losses({"a": [old]}, ""))
