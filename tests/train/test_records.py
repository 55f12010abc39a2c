"""A run's records of itself are read strictly: any other content is a one-sentence error."""

import json
import shutil

import pytest
import torch
from whole_runs import train

from gam_scale.errors import UserError
from gam_scale.parallel.world import World
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.run.goodput import goodput, read_starts
from gam_scale.run.report import write_report
from gam_scale.run.restarts import read_restarts
from gam_scale.train.health import read_ranks
from gam_scale.train.summary import finish, show_summary

READERS = {
    "starts.json": read_starts,
    "restarts.json": read_restarts,
    "ranks.json": read_ranks,
    "summary.json": read_summary,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, prepared_set):
    """Train a run of 3 steps and return its directory."""
    run = tmp_path_factory.mktemp("records") / "run"
    model = {"d_model": 16, "n_layers": 1, "max_seq_len": 48, "gam": {"n_slots": 4}}
    train(
        {
            "model": model,
            "data": {"sets": [{"path": str(prepared_set)}], "seq_len": 48},
            "train": {"steps": 3, "global_batch_size": 2, "warmup_steps": 1, "compile": "off"},
            "parallel": {"engine": "torch", "device": "cpu"},
            "log": {"run_dir": str(run), "wandb": "off", "tensorboard": False},
        }
    )
    return run


def wrong(content):
    """Yield wrong contents of a JSON file whose right content is ``content``.

    They are no JSON, JSON of another type, an object with an unknown key, and ``content`` with one
    value after another replaced by a value of another type.
    """
    yield from (b"", b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a": 9' + b"9" * 5000 + b"}")
    yield b"\xff\xfe"
    keys = [()]
    for path in keys:
        value = content
        for key in path:
            value = value[key]
        if isinstance(value, dict):
            keys += [(*path, key) for key in value]
        elif isinstance(value, list) and value:
            keys += [(*path, 0)]
        for other in ({"x": 1}, [[1]], True, "x", 1e400) if path else ():
            copy = json.loads(json.dumps(content))
            holder = copy
            for key in path[:-1]:
                holder = holder[key]
            if type(other) is not type(value):
                holder[path[-1]] = other
                yield json.dumps(copy).encode()


@pytest.mark.parametrize("name", READERS)
def test_another_json_in_its_place_is_one_sentence(trained, tmp_path, name):
    content = json.loads((trained / name).read_text())
    path, refused = tmp_path / name, 0
    for text in wrong(content):
        path.write_bytes(text)
        try:
            READERS[name](path)
        except UserError as error:
            refused += 1
            assert name in str(error) and "\n" not in str(error) and len(str(error)) < 500
        except Exception as error:
            pytest.fail(f"{name}: a traceback, {type(error).__name__}, for {text[:80]}")
    assert refused >= 25, f"{name}: only {refused} of the wrong contents are refused"
    if name != "summary.json":
        path.write_text("{}" if name != "restarts.json" else '{"unknown": 1}')
        with pytest.raises(UserError, match=name):
            READERS[name](path)


def test_metrics_of_any_content_are_read_by_goodput_and_report(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for line in ('{"step": 3, "time": null}', '{"step": 3}', '{"step": 3, "time": 1e400}', "{}"):
        (run / "metrics.jsonl").write_text(line + "\n")
        assert goodput(RunDir(run)) is None
        write_report(run)
    (run / "summary.json").write_text('{"val_loss": "low"}')
    with pytest.raises(UserError, match='summary.json: val_loss is "low"; expected a number'):
        write_report(run)


def test_any_figure_of_a_summary_may_be_unknown(trained, tmp_path, capsys):
    """A summary of an older version, or of a run whose clock was set back, is still shown."""
    whole = json.loads((trained / "summary.json").read_text())
    for key in whole:
        for figures in (whole | {key: None}, {k: v for k, v in whole.items() if k != key}):
            (tmp_path / "summary.json").write_text(json.dumps(figures))
            try:
                show_summary(RunDir(tmp_path))
            except Exception as error:
                pytest.fail(f"summary: without {key} it is a {type(error).__name__}: {error}")
    assert "of not known in 1 start" in capsys.readouterr().out


def test_metrics_that_cannot_be_read_leave_a_summary_without_them(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for name in ("summary.json", "metrics.jsonl"):
        (run / name).unlink()
    (run / "metrics.jsonl").symlink_to("/proc/self/mem")  # reading it fails with EIO
    finish(RunDir(run), World(0, 1, 0, 1, torch.device("cpu")), [], compiled=False)
    figures = read_summary(run / "summary.json", needs=["parameters", "tokens"])
    assert figures["last_loss"] is None, "summary: a loss without metrics"


def test_a_sample_may_hold_any_character(trained, tmp_path):
    """A model trained for three steps may write anything; its run still counts as finished."""
    figures = json.loads((trained / "summary.json").read_text()) | {"sample": "a\0\x07\ufffdb"}
    (tmp_path / "summary.json").write_text(json.dumps(figures))
    assert read_summary(tmp_path / "summary.json") == figures, "a sample makes a summary unreadable"
