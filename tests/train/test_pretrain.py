"""Whole runs, in this process: what they write, how they resume, what they refuse."""

import json
import math
import os
import re
import shutil
import signal

import pytest
import torch
from closeness import differ
from whole_runs import (
    after_step,
    assert_equal_runs,
    killed_after,
    last_tensors,
    spoiled,
    train,
)

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source
from gam_scale.errors import UserError


def stop_me() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_directory_holds_what_the_readme_says(tmp_path, tiny, capsys):
    run = tmp_path / "run"
    train(tiny(run))
    assert json.loads((run / "config.json").read_text())["model"]["vocab_size"] == 320
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 8, 10, 12, 16, 20]
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes"}
    assert all(wanted <= line.keys() for line in lines)
    assert "val_loss" in lines[3] and "val_loss" in lines[-1] and "val_loss" not in lines[0]
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_perplexity"] == pytest.approx(math.exp(lines[-1]["val_loss"]))
    assert (run / "logs" / "rank0.log").exists() and (run / "report.html").exists()
    printed = capsys.readouterr().out
    for words in ("first loss", "validation perplexity", "bits per byte", "tokens per second"):
        assert words in printed
    assert "report.html" in printed and str(run) in printed


def test_the_last_evaluation_has_the_loss_of_late_targets(tmp_path, tiny):
    lates = []
    for late_from in (1, 24):
        run = tmp_path / str(late_from)
        train(tiny(run, eval={"late_from": late_from}, train={"steps": 2, "warmup_steps": 1}))
        summary = json.loads((run / "summary.json").read_text())
        lates.append((summary["val_late_loss"], summary["val_loss"]))
    (all_of_them, mean), (late, same) = lates
    assert all_of_them == pytest.approx(mean, rel=1e-6) and same == mean  # fp32 sums in two orders
    assert math.isfinite(late) and abs(late - mean) > 1e-4


def test_the_same_command_again_finds_it_finished(tmp_path, tiny, capsys):
    run = tmp_path / "run"
    train(tiny(run))
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    train(tiny(run))
    assert (run / "metrics.jsonl").read_bytes() == before
    assert "validation perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("step", [1, 6, 7, 13, 19])
def test_a_run_that_dies_resumes_bit_for_bit(tmp_path, tiny, whole, curve, step):
    expected = whole()
    with killed_after(step):
        train(tiny(tmp_path / "broken"))
    train(tiny(tmp_path / "broken"))
    assert_equal_runs(expected, tmp_path / "broken", curve)


def test_sigterm_saves_and_the_same_command_goes_on(tmp_path, tiny, whole, curve):
    expected = whole()
    with after_step(9, stop_me):
        train(tiny(tmp_path / "stopped"))  # returns: exit status 0
    assert CheckpointStore(tmp_path / "stopped" / "checkpoints").steps()[-1] == 9
    assert not (tmp_path / "stopped" / "summary.json").exists()
    train(tiny(tmp_path / "stopped"))
    assert_equal_runs(expected, tmp_path / "stopped", curve)


def test_fresh_starts_over(tmp_path, tiny, curve):
    run = tmp_path / "run"
    train(tiny(run))
    once = curve(run)
    train(tiny(run, train={"seed": 5}), fresh=True)
    assert curve(run) != once
    assert len(curve(run)) == len(once)


def test_another_config_in_the_same_directory_is_refused(tmp_path, tiny):
    run, four = tmp_path / "run", {"steps": 4, "schedule": "constant"}
    train(tiny(run, train=four))
    with pytest.raises(UserError, match="train.lr is 0.1 but the run in .* has 0.003"):
        train(tiny(run, train=four | {"lr": 0.1}))
    train(tiny(run, train=four | {"steps": 8}))  # more steps of the same run are fine
    assert CheckpointStore(run / "checkpoints").steps()[-1] == 8


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"steps": 6}, {"steps": 4}, "train.steps is 4 but the run in .* has done 6; expected at"),
        ({"steps": 6}, {"steps": 12}, "rate would go from .*; expected .*continue_from"),
        ({"steps": 6, "schedule": "wsd"}, {"steps": 12, "schedule": "wsd"}, "wsd over 6, so that"),
    ],
)
def test_a_length_that_the_past_does_not_fit_is_refused(tmp_path, tiny, before, after, message):
    run = tmp_path / "run"
    train(tiny(run, train=before))
    # All but the log: this process still logs to this run.
    paths = [path for path in run.rglob("*") if path.is_file() and path.suffix != ".log"]
    files = {path: path.read_bytes() for path in paths}
    with pytest.raises(UserError, match=message):
        train(tiny(run, train=after))
    written = [path for path, data in files.items() if path.read_bytes() != data]
    assert not written, f"a refused run has written {written}"


def test_more_steps_are_fine_where_the_rates_so_far_stay(tmp_path, tiny, whole, curve):
    longer = {"steps": 20, "schedule": "wsd", "decay_ratio": 0.25}
    saved = {"background": False}
    with killed_after(7):  # where a run of 10 steps would begin to decay
        train(tiny(tmp_path / "run", train=longer | {"steps": 10}, checkpoint=saved))
    train(tiny(tmp_path / "run", train=longer))
    assert "resuming from" in (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert curve(tmp_path / "run") == curve(whole(train=longer))


def test_what_changes_no_past_may_change_and_data_may_move(
    tmp_path, tiny, whole, curve, prepared_set
):
    expected = whole()
    for name in ("here", "there"):
        shutil.copytree(prepared_set, tmp_path / name)
    sets = [{"path": str(tmp_path / "here"), "weight": 2.0}]
    with killed_after(7):
        train(tiny(tmp_path / "run", data={"sets": sets}, checkpoint={"background": False}))
    shutil.rmtree(tmp_path / "here")
    other = {"spike_ratio": 50.0, "max_skipped_steps": 3}
    sets = [{"path": str(tmp_path / "there"), "weight": 1.0}]
    train(tiny(tmp_path / "run", data={"sets": sets}, train=other))
    assert_equal_runs(expected, tmp_path / "run", curve)


def test_other_data_at_another_path_is_refused_before_anything_is_written(
    tmp_path, tiny, prepared_set
):
    run = tmp_path / "run"
    with killed_after(7):
        train(tiny(run, checkpoint={"background": False}))
    before = (run / "config.json").read_bytes()
    source, tokenizer = parse_source(str(prepared_set.parent / "*.txt")), "tokenizer.model"
    spec = {"tokenizer": prepared_set / tokenizer, "max_documents": 20}
    prepare(PrepareSpec(tmp_path / "other", [source], **spec))
    with pytest.raises(UserError, match=r"data.sets\[0\].path is .* but the run in .* has"):
        train(tiny(run, data={"sets": [{"path": str(tmp_path / "other")}]}))
    assert (run / "config.json").read_bytes() == before


def test_a_run_resumes_under_a_version_with_new_settings(tmp_path, tiny):
    run = tmp_path / "run"
    with killed_after(7):
        train(tiny(run, train={"steps": 8}))
    saved = json.loads((run / "config.json").read_text())
    del saved["data"]["carry_state"]
    (run / "config.json").write_text(json.dumps(saved))
    train(tiny(run, train={"steps": 8}))
    assert CheckpointStore(run / "checkpoints").steps()[-1] == 8


def test_a_set_without_a_validation_split_is_trained_on(tmp_path, tiny, prepared_set, capsys):
    source, shared = parse_source(str(prepared_set.parent / "*.txt")), {"overwrite": True}
    shared |= {"tokenizer": prepared_set / "tokenizer.model", "valid_fraction": 0.0}
    prepare(PrepareSpec(tmp_path / "set", [source], **shared))
    bare, whole = {"path": str(tmp_path / "set")}, {"path": str(prepared_set)}
    capsys.readouterr()
    short = {"train": {"steps": 4}, "eval": {"every_steps": 0}}
    train(tiny(tmp_path / "run", data={"sets": [bare]}, **short))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["validated"], summary["val_loss"]) == ([], None)
    printed = capsys.readouterr().out
    assert re.search("^validation +none: no data set has a validation split$", printed, re.M)
    assert "Nothing was validated" in (tmp_path / "run" / "report.html").read_text()
    train(tiny(tmp_path / "mix", data={"sets": [bare, whole]}, **short))
    summary = json.loads((tmp_path / "mix" / "summary.json").read_text())
    assert summary["validated"] == [str(prepared_set)] and summary["val_loss"] > 0
    assert f"without a validation split: {tmp_path / 'set'}" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_taken_for_a_run(tmp_path, tiny):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a run directory"):
        train(tiny(tmp_path), fresh=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_keeps_the_last_checkpoints_and_the_best(tmp_path, tiny):
    run = tmp_path / "run"
    train(tiny(run, checkpoint={"every_steps": 3, "keep_last": 1}))
    store = CheckpointStore(run / "checkpoints")
    best = json.loads((store.folder / "best.json").read_text())
    assert store.steps() == sorted({best["step"], 20})
    state = json.loads((store.path(best["step"]) / "state.json").read_text())
    assert state["best_val_loss"] == best["val_loss"]


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(tmp_path, tiny):
    run = tmp_path / "run"
    with spoiled(7):
        train(tiny(run))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 1, 1, 1, 1, 1]
    state = json.loads((run / "checkpoints" / "step-00000020" / "state.json").read_text())
    assert (state["step"], state["optimizer_steps"]) == (20, 19)


@pytest.mark.parametrize("micro", [1, 3, 4])
def test_accumulation_and_ragged_batches_do_not_change_the_losses(
    tmp_path, tiny, whole, curve, micro
):
    still = {"model": {"dropout": 0.0}}
    two = whole(train={"micro_batch_size": 2}, **still)
    train(tiny(tmp_path / "b", train={"micro_batch_size": micro}, **still))
    for a, b in zip(curve(two), curve(tmp_path / "b"), strict=True):
        assert a["tokens"] == b["tokens"]
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-5)  # fp32: another order of additions


@pytest.mark.parametrize("block", ["attention", "mamba"])
def test_the_baselines_train_in_the_same_harness(tmp_path, tiny, curve, block):
    model = {"block": block, "attention": {"n_heads": 2}, "mamba": {"d_state": 4, "expand": 2}}
    run = tmp_path / block
    train(tiny(run, model=model))
    losses = [line["loss"] for line in curve(run)]
    assert losses[-1] < losses[0] - 0.5


def test_changed_data_is_noticed(tmp_path, tiny, prepared_set):
    data = tmp_path / "data"
    shutil.copytree(prepared_set, data)
    config = tiny(tmp_path / "run", data={"sets": [{"path": str(data)}]})
    with after_step(8, stop_me):
        train(config)
    source = parse_source(str(prepared_set.parent / "*.txt"))
    tokenizer = prepared_set / "tokenizer.model"
    prepare(PrepareSpec(data, [source], tokenizer=tokenizer, max_documents=20, overwrite=True))
    with pytest.raises(UserError, match="data of .* has changed since step 8"):
        train(config)


def test_epochs_become_steps(tmp_path, tiny):
    run = tmp_path / "run"
    train(tiny(run, train={"steps": 0, "epochs": 0.25, "warmup_steps": 1}))
    steps = json.loads((run / "config.json").read_text())["train"]["steps"]
    assert 1 < steps < 200
    train(tiny(run, train={"steps": 0, "epochs": 0.25, "warmup_steps": 1}))


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path, tiny):
    said = "3 steps in a row, the last one 3,.*max_skipped_steps"
    with spoiled(1, 2, 3), pytest.raises(UserError, match=said):
        train(tiny(tmp_path / "run", train={"max_skipped_steps": 3}))


def test_a_short_contexts_weights_go_on_at_a_longer_one(tmp_path, tiny):
    model = {"position": "none", "memory": {"kind": "delta", "n_heads": 2}}
    train(tiny(tmp_path / "short", model=model, data={"seq_len": 24}))
    start = {"init_from": str(tmp_path / "short")}
    train(tiny(tmp_path / "long", model=model, checkpoint=start, train={"steps": 3, "lr": 1e-12}))
    short, long = last_tensors(tmp_path / "short"), last_tensors(tmp_path / "long")
    for name, tensor in short.items():
        if name.startswith("param."):
            torch.testing.assert_close(long[name], tensor, rtol=1e-6, atol=1e-8)
        else:  # moments are the new run's own, over its three steps
            assert differ(long[name], tensor), name
    first = json.loads((tmp_path / "long" / "metrics.jsonl").read_text().splitlines()[0])
    last = json.loads((tmp_path / "short" / "metrics.jsonl").read_text().splitlines()[-1])
    assert abs(first["loss"] - last["loss"]) < 0.3 < math.log(320) - first["loss"]


def test_weights_of_another_shape_are_refused_by_name(tmp_path, tiny):
    train(tiny(tmp_path / "one", train={"steps": 3}))
    other = tiny(tmp_path / "two", model={"d_model": 16})
    other["checkpoint"]["init_from"] = str(tmp_path / "one")
    with pytest.raises(UserError, match=r"embedding.weight has shape .*; expected \(320, 16\)"):
        train(other)


def test_data_by_url_starts_dies_and_starts_again(tmp_path, tiny, whole, curve, prepared_set):
    """The default cache is in the run directory, and is filled before a run is begun there."""
    run = tmp_path / "run"
    config = tiny(run, data={"sets": [{"path": f"file://{prepared_set}"}]})
    local = whole()
    with killed_after(7):
        train(config)
    train(config)
    assert_equal_runs(local, run, curve)
    cached = {path: path.stat().st_mtime_ns for path in (run / "cache").rglob("*.mds")}
    assert cached, "the shards were read from elsewhere than the cache"
    train(config, fresh=True)
    assert_equal_runs(local, run, curve)
    assert cached == {path: path.stat().st_mtime_ns for path in cached}, "downloaded again"


def test_a_kill_while_data_is_downloaded_does_not_block_the_run(tmp_path, tiny, monkeypatch):
    from gam_scale.data import set_files

    class Death(BaseException):
        pass

    def die(url, target):
        raise Death

    config = tiny(tmp_path / "run", data={"sets": [{"path": f"file://{tmp_path / 'nowhere'}"}]})
    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(set_files, "_download", die)
        train(config)
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / "cache"]
    train(tiny(tmp_path / "run", train={"steps": 3}))


def test_a_z_loss_is_no_part_of_the_losses_of_a_run(tmp_path, tiny, whole):
    train(tiny(tmp_path / "run", train={"z_loss": 0.1}))
    ours, plain = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "run", whole())
    )
    assert ours[0]["loss"] == plain[0]["loss"]
    assert ours[0]["grad_norm"] != plain[0]["grad_norm"]
    assert ours[-1]["val_loss"] != plain[-1]["val_loss"]
