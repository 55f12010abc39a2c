"""Test whole comparisons at toy size: stages, kept results, and pages made from rows alone."""

import itertools
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gam_scale.compare import text_tables
from gam_scale.compare.comparison import Comparison
from gam_scale.compare.continued_models import continued_models
from gam_scale.compare.measure_cell import measure
from gam_scale.compare.rates import beyond
from gam_scale.compare.solve import sized
from gam_scale.compare.spec import ModelEntry, TaskSpec, TextSpec, read_spec
from gam_scale.compare.task_cell import learn
from gam_scale.errors import UserError
from gam_scale.experiment.kept import read_rows
from gam_scale.hyperparameters import choose
from gam_scale.train.in_turn import train_in_turn

ROOT = Path(__file__).resolve().parents[2]
TASK = {
    "kind": "task",
    "tasks": {
        "pairs": {"recall": {"vocab_size": 32, "train": [[8, 2]], "test": [[8, 2], [16, 2]],
                             "steps": 3, "check_every": 3, "test_texts": 10}, "widths": [16, 32]},
        "bits": {"recall": {"task": "parity", "vocab_size": 2, "train": [[4]], "test": [[4], [8]],
                            "steps": 3, "check_every": 3, "test_texts": 10}, "models": ["scan"]},
    },
    "model": {"d_model": 16, "n_layers": 1, "position": "none", "dropout": 0.0},
    "models": {"scan": {"layers": ["scan"]},
               "delta": {"layers": [{"kind": "delta", "n_heads": 2}]}},
    "lrs": [1e-3, 1e-2],
    "seeds": [0, 1],
}  # fmt: skip
TEXT = {
    "kind": "text",
    "set": {
        "model": {"d_model": 32, "n_layers": 1, "dropout": 0.0, "position": "none"},
        "data": {"seq_len": 48},
        "train": {"global_batch_size": 2, "compile": "off"},
        "eval": {"max_tokens": 200, "batch_size": 2},
        "log": {"every_steps": 2},
    },
    "models": {
        "delta": {"model": {"layers": [{"kind": "delta"}]}, "fit": {"delta.n_heads": [1, 2]}},
        "static": {"model": {"layers": ["static"], "gam": {"n_slots": 8}}, "state": "own",
                   "train": {"optimizer": "muon"}, "lrs": [2e-3, 1e-2], "against": "delta"},
    },
    "size": {"parameters": 12_000, "state": 512},
    "tune_tokens": 200,
    "tokens": 400,
    "lrs": [1e-3, 1e-2],
    "seeds": [0, 1],
    "repeat": 1,
    "measure": {"positions": [32], "max_tokens": 200},
}  # fmt: skip


def written(tmp_path: Path, values: dict) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(values))
    return path


def train_here(comparison: Comparison, most: int = 99) -> int:
    """Train missing cells in this process, at most ``most``; return how many were trained."""
    done = 0
    trainers = {
        "gam_scale.train.in_turn": lambda path: train_in_turn([str(path)]),
        "gam_scale.compare.task_cell": learn,
        "gam_scale.compare.measure_cell": measure,
    }
    while (missing := comparison.missing()) and done < most:
        for (cell,) in missing.jobs[: most - done]:
            assert cell.state() == "absent"
            trainers[cell.trainer](cell.write_config())
            assert cell.row() is not None and cell.state() == "finished"
            done += 1
    return done


def test_tasks_are_learned_at_every_rate_and_by_further_seeds_at_the_best(run_tool, tmp_path):
    spec, out = written(tmp_path, TASK), tmp_path / "out"
    comparison = Comparison(read_spec(spec), out)
    # The best of two rates is always at an end, so one more is tried. Then the second seed.
    assert train_here(comparison, most=4) == 4 and train_here(comparison) == 5 * 4 - 4
    rows = comparison.rows()
    groups = {(r["task"], r["model"], r["width"]) for r in rows}
    assert len(groups) == 5 and len(rows) == 5 * 4
    for group in groups:
        mine = [r for r in rows if (r["task"], r["model"], r["width"]) == group]
        first = {r["lr"]: r["checked"] for r in mine if r["seed"] == 0}
        (again,) = (r for r in mine if r["seed"] == 1)
        best = max(first.values())
        assert again["lr"] == min(lr for lr, checked in first.items() if checked == best)
        assert len(first) == 3 and {*first} - {*TASK["lrs"]} < {1e-4, 0.1}
    delta = next(r for r in rows if r["model"] == "delta" and r["width"] == 32)
    assert delta["memory"] == 32 * 16
    assert [s["label"] for s in delta["scores"]] == ["2 in 8", "2 in 16"]
    assert run_tool("compare", "run", "--spec", spec, "--out", out) == 0  # there is nothing left
    assert run_tool("compare", "page", "--spec", spec, "--out", out) == 0
    page = (out / "page" / "report.md").read_text()
    assert "## Task: pairs" in page and "2 in 16" in page
    assert (out / "page" / "pairs-state.png").exists()
    other = TASK | {"model": TASK["model"] | {"dropout": 0.5}}
    with pytest.raises(UserError, match="has another model than the comparison has now"):
        Comparison(read_spec(written(tmp_path, other)), out).rows()


def test_a_killed_command_goes_on_side_by_side_and_trains_nothing_twice(run_tool, tmp_path, capfd):
    small = {**TASK, "tasks": {"bits": TASK["tasks"]["bits"]}, "seeds": [0]}
    spec, kept = written(tmp_path, small), tmp_path / "kept"
    asked = ["--spec", spec, "--out", tmp_path / "out"]
    assert run_tool("compare", "plan", *asked) == 0
    assert "2 cells are known and missing" in capfd.readouterr().out
    for action in ("plan", "run"):
        assert run_tool("compare", action, *asked, "--only", "bots") == 2
        said = "error: --only bots is in no name of the cells that are known so far; expected part"
        assert said in capfd.readouterr().err
    command = [sys.executable, ROOT / "tools" / "compare.py", "run", *asked]
    command = [*map(str, command), "--side-by-side", "2", "--to", str(kept)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as killed:
        while not (found := list((tmp_path / "out" / "results").glob("bits-*.json"))):
            assert killed.poll() is None, "it ended before anything was trained"
            time.sleep(0.01)
        killed.kill()
    before = {path: path.read_bytes() for path in found}
    assert run_tool("compare", "run", *asked, "--side-by-side", 2, "--to", kept) == 0
    said = capfd.readouterr().out
    assert "bits-scan-d16-lr" in said and "everything is done" in said
    assert all(path.read_bytes() == value for path, value in before.items())
    alone = Comparison(read_spec(spec), tmp_path / "alone")
    assert train_here(alone) == 3
    results = {row["cell"]: row for row in read_rows(kept / "results.jsonl", ["model"])}
    assert results.keys() == {row["cell"] for row in alone.rows()}
    for row in alone.rows():
        assert results[row["cell"]]["curve"] == row["curve"]
        assert results[row["cell"]]["scores"] == row["scores"]
    assert run_tool("compare", "status", *asked) == 0 and "finished" in capfd.readouterr().out
    assert run_tool("compare", "run", *asked, "--only", "lr0.01-") == 0
    assert "all known cells with lr0.01- are done" in capfd.readouterr().out


def test_text_is_tuned_then_trained_then_measured(run_tool, tmp_path, prepared_set):
    spec, out = written(tmp_path, TEXT | {"data": str(prepared_set)}), tmp_path / "out"
    comparison = Comparison(read_spec(spec), out)
    assert train_here(comparison) == 4 + 2 + 2 + 1 + 3
    rows = comparison.rows()
    tuned = [r for r in rows if r.get("stage") == "tune"]
    full = [r for r in rows if r.get("stage") == "full"]
    assert len(tuned) == 6 and len(full) == 3  # two rates each and one beyond
    for row in (r for r in full if r["seed"] == 0):
        losses = {r["lr"]: r["val_loss"] for r in tuned if r["model"] == row["model"]}
        assert losses[row["lr"]] == min(losses.values())
        lrs = TEXT["models"][row["model"]].get("lrs", TEXT["lrs"])
        asked = {lr: losses.pop(lr) for lr in lrs}
        assert list(losses) == [beyond(list(asked), min(asked, key=asked.get))]
    optimizers = {cell.model_name: cell.config.train.optimizer for cell in comparison.cells()[:6]}
    assert optimizers == {"delta": "adamw", "static": "muon"}
    again = next(r for r in full if r["seed"] == 1)
    first = {r["model"]: r["val_loss"] for r in full if r["seed"] == 0}
    assert first[again["model"]] == min(first.values())
    assert {r["memory"] for r in full if r["model"] == "delta"} == {512}
    places = [r for r in rows if r.get("what") == "positions"]
    assert len(places) == 3 and all(sum(b[-1] for b in r["bins"]) == r["tokens"] for r in places)
    assert run_tool("compare", "page", "--spec", spec, "--out", out) == 0
    results, to = out / "page" / "results.jsonl", tmp_path / "again"
    assert str(tmp_path) not in (said := results.read_text()) and str(prepared_set) not in said
    assert run_tool("compare", "page", "--spec", spec, "--results", results, "--to", to) == 0
    page = (out / "page" / "report.md").read_text()
    assert (to / "report.md").read_text() == page and "Loss by position, 32 tokens" in page
    assert "| static | delta |" in re.sub(r" +", " ", page), "tokens to equal loss"

    lost = tmp_path / "lost"  # on a later machine only the page's rows exist
    assert run_tool("compare", "run", "--spec", spec, "--out", lost, "--to", out / "page") == 0
    assert not (lost / "runs").exists()
    assert Comparison(read_spec(spec), lost).rows() == read_rows(results, ["model"]) == rows
    (lost / "results" / f"{places[0]['cell']}.json").unlink()
    assert not Comparison(read_spec(spec), lost).missing(), "measures a run that is not there"
    row = json.loads((path := lost / "results" / f"{full[0]['cell']}.json").read_text())
    path.write_text(json.dumps(row | {"text": "another"}))
    with pytest.raises(UserError, match="was trained on the text another and"):
        Comparison(read_spec(spec), lost).rows()
    path.write_text(json.dumps(row))
    halves = TEXT["set"] | {"train": TEXT["set"]["train"] | {"precision": "bf16"}}
    other = read_spec(written(tmp_path, TEXT | {"data": str(prepared_set), "set": halves}))
    with pytest.raises(UserError, match="-full-.* has another train.precision than"):
        Comparison(other, lost).rows()  # tuning runs may have another precision
    other = read_spec(written(tmp_path, TEXT | {"data": str(prepared_set), "tune_tokens": 300}))
    with pytest.raises(UserError, match="has another train.steps than .* another --out"):
        Comparison(other, lost).rows()

    longer = {
        "kind": "text", "tokens": 400, "data": str(prepared_set), "start_best": 1,
        "lrs": [1e-3], "set": TEXT["set"] | {"model": {}, "data": {"seq_len": 96}},
        "measure": {"context": 48},
    }  # fmt: skip
    spec = read_spec(written(tmp_path, longer))
    with pytest.raises(UserError, match="expected --start DIR"):
        Comparison(spec, tmp_path / "long").cells()
    with pytest.raises(UserError, match="of which only the result was kept"):
        Comparison(spec, tmp_path / "long", lost).cells()
    comparison = Comparison(spec, tmp_path / "long", out)
    assert train_here(comparison) == 2
    found = comparison.rows()
    assert [r.get("what", r.get("stage")) for r in found] == ["full", "context"]
    assert found[0]["seq_len"] == 96 and found[0]["model"] == min(first, key=first.get)
    assert found[0]["parameters"] == next(
        r["parameters"] for r in full if r["model"] == found[0]["model"]
    )


def test_a_full_run_at_further_rates_counts_where_it_is_better(run_tool, tmp_path, prepared_set):
    models = {"static": TEXT["models"]["static"] | {"lrs": [1e-5, 1e-4], "against": ""}}
    values = TEXT | {"models": models, "data": str(prepared_set), "repeat": 0, "reference": ""}
    spec, out = written(tmp_path, values | {"widen": 0}), tmp_path / "out"
    comparison = Comparison(read_spec(spec), out)
    assert train_here(comparison) == 2 + (1 + 1) + (1 + 1)
    models["static"]["full_lrs"] = [1e-4, 1e-2]
    spec = written(tmp_path, values | {"widen": 0})
    comparison = Comparison(read_spec(spec), out)
    assert train_here(comparison) == (1 + 1) + (1 + 1)
    rows = comparison.rows()
    found = {(r["lr"], r["seed"]) for r in rows if r.get("stage") == "full"}
    assert found == {(1e-4, 0), (1e-2, 0), (1e-2, 1)}, "the best full run is not what is repeated"
    assert run_tool("compare", "page", "--spec", spec, "--out", out) == 0
    page = re.sub(r" +", " ", (out / "page" / "report.md").read_text())
    best = [r["val_loss"] for r in rows if r.get("stage") == "full" and r["lr"] == 1e-2]
    assert f"| static | {rows[0]['parameters']:,} |" in page and f"| {best[0]:.4f} |" in page
    assert f"{sum(best) / 2:.4f} ±" in page, "runs at another rate are in the mean"
    assert "Learning rates of full runs" in page
    ((_, continued),) = continued_models(TextSpec(start=["static"]), out).values()
    assert "-full-lr0.01-s0" in continued.name, "not the best run of the first seed"
    models["static"]["full_lrs"] = [1e-4, 1e-2, 1e-3]
    waiting = Comparison(read_spec(written(tmp_path, values | {"widen": 0})), out)
    again = (rows[-1]["cell"], 1)
    assert again in {(r["cell"], r["seed"]) for r in rows}
    assert again not in {(r["cell"], r["seed"]) for r in waiting.rows()}
    kept = [r["cell"] for r in waiting.rows_to_keep()]
    assert {r["cell"] for r in rows} <= {*kept} and len(kept) == len({*kept})
    spec = written(tmp_path, values | {"widen": 0})
    assert run_tool("compare", "page", "--spec", spec, "--out", out) == 0
    assert [r["cell"] for r in read_rows(out / "page" / "results.jsonl")] == kept
    assert f"{sum(best) / 2:.4f} ±" in (out / "page" / "report.md").read_text()
    models["static"]["full_lrs"] = [1e-2, 1e-2]
    with pytest.raises(UserError, match="models.static.full_lrs is .* expected each rate once"):
        read_spec(written(tmp_path, values))


def test_a_run_that_diverged_is_the_last_and_no_measure():
    common = {"seed": 0, "parameters": 9, "memory": 1, "state": 1, "tokens": 1000}
    common |= {"val_bits_per_byte": 1.0, "tokens_per_s": 10, "lr": 1e-3}
    losses = {"diverged": math.nan, "worse": 3.0, "best": 1.5}
    full = {name: [common | {"val_loss": loss}] for name, loss in losses.items()}
    table = str(text_tables.losses(full, ""))
    order = [table.index(name) for name in ("best", "worse", "diverged")]
    assert order == sorted(order) and "less best" in table and "+1.5000" in table
    tuned = [common | {"lr": lr, "val_loss": loss} for lr, loss in zip(
        (1e-3, 2e-3, 4e-3), (math.nan, 2.0, 3.0), strict=True
    )]  # fmt: skip
    table = str(text_tables.rates({"delta": tuned}, "Learning rates"))
    assert table.splitlines()[2].endswith(" 0.002")


def test_tokens_to_the_loss_at_which_another_ended():
    curve = [(250, 4.0), (500, math.nan), (750, 3.5)]  # 3.25 is halfway to the last loss, 3.0
    common = {"seed": 0, "tokens": 1000, "tokens_per_s": 10, "val_loss": 3.0, "val_curve": curve}
    full = {
        "adamw": [common | {"val_loss": 3.25}],
        "muon": [common, common | {"seed": 1, "tokens_per_s": 5}],
        "slow": [common, common | {"seed": 1, "val_loss": 3.5}],
    }
    against = {name: ModelEntry(against="adamw") for name in ("muon", "slow")}
    spec = TextSpec(models={"adamw": ModelEntry()} | against)
    table = {row[0]: row[1:] for row in text_tables.equal_loss(full, spec).rows}
    assert table.keys() == {"muon", "slow"}, "adamw is set against no other"
    assert table["muon"][:4] == ["adamw", "3.2500", "875 ± 0", "0.88"]
    assert table["muon"][4:] == ["131 ± 62", "1.31"]  # 87.5 s and 175 s, where adamw took 100 s
    assert table["slow"] == ["adamw", "3.2500", *["not reached"] * 4]
    assert text_tables.equal_loss(full, TextSpec(models=dict.fromkeys(full, ModelEntry()))) is None


def test_needles_of_an_earlier_version_are_said_to_count_every_depth():
    row = {"model": "a", "what": "needle", "length": 64, "chance": 0.25}
    row |= {"accuracy": 0.5, "low": 0.4, "high": 0.6}
    before = text_tables.retrieval([row])
    now = text_tables.retrieval([row | {"right": [0, 5, 3]}])
    assert before.rows == now.rows == [["a", "needle", "0.50 [0.40, 0.60]", "0.250", "over 64"]]
    assert "as independent, and are too narrow" in before.note
    assert "independent" not in now.note


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "image"}, "has the kind 'image'; expected an object with \"task\" or \"text\""),
        (TASK | {"lrs": []}, "lrs is \\[\\]; expected one value or more"),
        (TASK | {"tasks": {"a": {"models": ["x"]}}}, "tasks.a.models has 'x'; expected some of"),
        (TASK | {"tasks": {"a": {"recall": {"seed": 1}}}}, "a.recall.seed is the comparison's"),
        (TASK | {"models": {"a-b": {}}}, "the name 'a-b' is not accepted"),
        (TASK | {"tasks": {"a": {"models": ["scan"], "own_widths": {"delta": [8]}}}},
         "tasks.a.own_widths has 'delta'; expected models that learn"),
        (TEXT | {"start": ["delta"]}, "models and start are both given or both empty"),
        (TEXT | {"tune_tokens": 0}, "with tune_tokens 0; expected one rate"),
        (TEXT | {"models": {"a": {"lrs": [1.0, 1.0]}}}, "models.a.lrs is .* each rate once"),
        (TEXT | {"models": {"a": {"against": "b"}}}, "models.a.against is 'b'; expected the name"),
        (TEXT | {"models": {"a": {"train": {"lr": 1.0}}}}, "models.a.train.lr is the comparison's"),
        (TEXT | {"set": {"train": {"steps": 9}}}, "set.train.steps is the comparison's"),
        (TEXT | {"set": {"train": {"warmup_steps": 9}}}, "set.train.warmup_steps is the compar"),
        (TEXT | {"set": {"trian": {}}}, "set.trian is no section of a config; expected some of mo"),
        (TEXT | {"set": {"data": {"sets": []}}}, "set.data.sets is the comparison's; expected da"),
        (TEXT | {"set": {"log": {"run_dir": "a"}}}, "set.log.run_dir is the comparison's; exp"),
        (TEXT | {"set": {"model": 5}}, "set.model is 5; expected an object"),
        (TASK | {"models": {"scan": 5}}, "models.scan is 5; expected an object"),
        (TEXT | {"models": {"a": {"fit": {"delta.n_heads": []}}}}, "n_heads is \\[\\]; expected"),
        (TEXT | {"reference": "x"}, "reference is 'x'; expected the name of a model"),
        (TEXT | {"tokens": 0, "tune_tokens": 0, "lrs": [1]}, "expected tokens to train on"),
        (TEXT | {"tokns": 1}, "tokns is not a setting; did you mean tokens"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        read_spec(written(tmp_path, values))


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "compare").glob("*.json")), ids=lambda path: path.name
)
def test_shipped_files_make_models_of_one_size(path, tmp_path):
    spec = read_spec(path)
    if isinstance(spec, TaskSpec):
        cells = Comparison(spec, tmp_path).cells()
        assert {cell.model_name for cell in cells} == set(spec.models)
        return
    shared = {"vocab_size": 4096, **spec.set.get("model", {})}
    sizes = [sized(name, entry, shared, spec.size) for name, entry in spec.models.items()]
    if path.name == "transfer.json":  # each width has four times the parameters
        for kind in ("gam_delta", "transformer"):
            its = [s.parameters for name, s in zip(spec.models, sizes, strict=True) if kind in name]
            assert [round(b / a) for a, b in itertools.pairwise(its)] == [4, 4]
        return
    assert all(abs(s.parameters / spec.size.parameters - 1) <= 0.01 for s in sizes)


def test_rates_may_be_multiples_of_the_one_that_is_chosen(run_tool, tmp_path, prepared_set):
    train = TEXT["set"]["train"] | {"warmup_steps": "auto", "weight_decay": "auto"}
    values = TEXT | {"data": str(prepared_set), "set": TEXT["set"] | {"train": train}}
    values |= {"times_auto": True, "lrs": [0.5, 1], "widen": 0, "tokens": 0, "seeds": [0]}
    spec = written(tmp_path, values | {"models": {"delta": TEXT["models"]["delta"]}})
    comparison = Comparison(read_spec(spec), tmp_path / "out")
    assert train_here(comparison) == 2
    half, one = comparison.rows()
    assert [half["rate"], one["rate"]] == [0.5, 1]
    config = comparison.cells()[1].config
    kept = config.train.warmup_steps, config.train.weight_decay
    config.train.lr = "auto"
    assert one["lr"] == choose(config).settings["lr"] == pytest.approx(2 * half["lr"], rel=0.01)
    assert type(kept[0]) is int and kept[1] != 0.1
    assert run_tool("compare", "page", "--spec", spec, "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "page" / "report.md").read_text()
    assert (
        "multiples of what train.lr auto chooses" in page and "| model | 0.5 | 1 | best |" in page
    )
