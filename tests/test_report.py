"""The run's page: self-contained, escaped, and made from whatever a run has written."""

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.report.figure import PLACEHOLDERS
from gam_scale.report.lines import MAX_POINTS, _means, _running_mean
from gam_scale.report.table import Table
from gam_scale.run.report import write_report
from gam_scale.strict import from_dict, to_dict


def page(folder: Path, lines: list[dict], summary: dict | None = None, **log: str) -> str:
    config = to_dict(RunConfig())
    config["log"] |= log
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text()


def line(step: int, **more) -> dict:
    figures = {"step": step, "tokens": 10 * step, "loss": 5 / step, "lr": 1e-3, "seconds": step}
    return figures | {"tokens_per_s": 9.0, "grad_norm": 1.0} | more


class Structure(HTMLParser):
    """Checks that tags nest; collects ids, references to ids, and visible text."""

    VOID = {"meta"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.references, self.text = [], [], set(), ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.references.add(value.removeprefix("#"))
            self.references |= set(re.findall(r"url\(#([^)]*)\)", value or ""))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def test_goodput_of_a_run_that_was_restarted(tmp_path):
    """Of 100 s, 20 s are steps that count and 40 s resume the run; 3 steps are trained twice."""
    first = {"began": 100.0, "step": 0, "ranks": 2, "job": "7", "again": False, "trained": 110.0}
    second = first | {"began": 170.0, "step": 6, "again": True, "trained": 190.0}
    second |= {"last_step": 9, "last_time": 150.0}
    (tmp_path / "starts.json").write_text(json.dumps({"starts": [first, second]}))
    text = page(tmp_path, [line(12, time=200.0, step_seconds=20.0)])
    for name, value in {
        "Goodput: steps that count, of that time": "20%",
        "Starts": "2",
        "Time to resume": "40\u00a0s",
        "Steps trained again": "3",
    }.items():
        assert f"<th scope=row>{name}</th><td>{value}</td>" in text
    assert "Goodput" not in page(tmp_path, [line(12)])  # a run of an older version


def test_four_plots_the_figures_and_the_sample(tmp_path):
    lines = [line(1), line(2, val_loss=3.0), line(3, val_loss=2.0)]
    summary = {"val_perplexity": 7.389, "tokens_per_s": 12345.6, "mfu": 0.614, "compiled": True}
    summary |= {"parameters": 22_599_680, "peak_memory_bytes": 912_345_678, "sample": "Once upon"}
    text = page(tmp_path, lines, summary)
    assert re.findall(r'<svg class="([^"]*)"', text) == [
        "loss",
        "loss-narrow",
        "lr",
        "speed",
        "norm",
    ]
    shown = Structure(text).text
    for words in ("7.39", "12,346", "MFU 61%", "22,599,680", "0.91 GB", "yes", "Once upon"):
        assert words in shown
    assert "not finished" not in shown


def test_the_page_needs_nothing_else_and_its_parts_fit_together(tmp_path):
    lines = [line(s, val_loss=4.0) for s in range(1, 6)]
    text = page(tmp_path, lines, {"sample": "s"})
    assert "://" not in text and "<script" not in text and "@import" not in text
    parsed = Structure(text)
    assert len(parsed.ids) == len(set(parsed.ids)), "two plots share an id"
    assert parsed.references and parsed.references <= set(parsed.ids)
    assert not any(placeholder in text for placeholder in PLACEHOLDERS)
    for variable in set(re.findall(r"var\((--\w+)\)", text)):
        assert text.count(f"{variable}:") == 2, f"{variable} lacks a light or a dark value"


def test_what_a_run_says_cannot_become_markup(tmp_path):
    evil = "<script>alert('&')</script>"
    folder = tmp_path / "<i>run&"
    folder.mkdir()
    text = page(
        folder, [line(1)], {"sample": evil, "device": evil, "engine": "<b>"}, wandb_project=evil
    )
    assert "<script" not in text and "<i>" not in text and "<b>run" not in text
    shown = Structure(text).text
    assert shown.count(evil) == 3 and "<i>run&" in shown


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [line(1)],
        [line(1, val_loss=3.0)],
        [line(1, loss=None, grad_norm=None), line(2)],
        [line(1, loss=None), line(2, loss=None)],
        [{"step": 1}],
        [line(s, lr=0.0, grad_norm=0.0) for s in (1, 2)],
        [line(s, grad_norm=10.0**s) for s in range(1, 6)],
    ],
)
def test_short_and_broken_runs_have_a_page(tmp_path, lines):
    text = page(tmp_path, lines)
    shown = Structure(text).text
    assert "not finished" in shown and "n_layers" in shown
    has_loss = any(m.get("loss") or m.get("val_loss") for m in lines)
    assert text.count("<svg class") == 2 * has_loss + 3 * any("lr" in m for m in lines)


def test_a_running_run_with_a_cut_line_has_a_page(tmp_path):
    page(tmp_path, [line(1), line(2)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert "up to step 2" in write_report(tmp_path).read_text()


def test_lost_values_are_counted(tmp_path):
    lines = [line(1), line(2, loss=None), line(3), line(4, loss=None)]
    assert "not a finite number (2 of 4 lines)" in page(tmp_path, lines)


def test_the_time_of_every_process_of_a_resumed_run_counts(tmp_path):
    lines = [line(1, seconds=20), line(2, seconds=40), line(3, seconds=10), line(4, seconds=25)]
    assert "65\u00a0s" in page(tmp_path, lines)


def test_the_time_of_a_start_shorter_than_the_next_ones_first_line_counts(tmp_path):
    """10 s up to step 2; then 30 s up to step 9, of which a later start dropped all; then 50 s."""
    start = {"began": 1.0, "ranks": 1, "job": "", "again": False}
    starts = [start | {"step": step} for step in (0, 2, 7, 2)]
    (tmp_path / "starts.json").write_text(json.dumps({"starts": starts}))
    lines = [line(1, seconds=5), line(2, seconds=10), line(4, seconds=20), line(9, seconds=50)]
    assert "in 60\u00a0s." in page(tmp_path, lines)


def test_a_run_with_skipped_steps_and_without_a_validation_loss_does_not_look_sound(tmp_path):
    summary = {"validated": ["prose"], "val_loss": 4.5, "skipped_steps": 0}
    sound = Structure(page(tmp_path, [line(1)], summary)).text
    assert "Steps skipped" not in sound and "validation loss at the end" not in sound
    lost = Structure(page(tmp_path, [line(1)], summary | {"val_loss": None, "skipped_steps": 7}))
    assert re.search(r"no finite gradient\)\s*7", lost.text)
    assert "The validation loss at the end is not known" in lost.text
    text = Structure(page(tmp_path, [line(1), line(2, skipped_steps=3)])).text
    assert "Steps skipped" in text, "the page of a run in training is silent on it"


@pytest.mark.parametrize(
    ("changes", "reach"),
    [({}, 13), ({"kernel_size": 5}, 25), ({"paths": "global"}, 1), ({"paths": "local"}, 13)],
)
def test_says_how_far_a_gam_stack_sees(tmp_path, changes, reach):
    config = to_dict(RunConfig())
    config["model"]["gam"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = write_report(tmp_path).read_text()
    assert f"Tokens that reach a prediction</th><td>{reach}</td>" in text
    assert text.count("is a fixed bank") == ("local" not in changes.values())


@pytest.mark.parametrize(
    ("layers", "mixing"),
    [
        (["attention"], "the windows of attention"),
        (["static", "attention"], "the convolutions and the windows of attention"),
        (["static"], "the convolutions"),
    ],
)
def test_says_what_mixes_tokens(tmp_path, layers, mixing):
    changes = {"layers": layers, "attention": {"window": 5}}
    config = to_dict(from_dict(RunConfig, {"model": changes}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = Structure(write_report(tmp_path).read_text()).text
    assert f"Only {mixing} mix tokens, so" in text
    assert ("is a fixed bank" in text) == ("static" in layers)


def test_a_run_that_has_logged_nothing_has_no_figures_of_training(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(RunConfig())))
    text = write_report(tmp_path).read_text()
    assert ">Setup<" in text and ">Training<" not in text
    assert Table("Nothing", [], []).markdown().startswith("## Nothing")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "Gated associative memory"),
        ({"memory": {"kind": "delta"}}, "Gated associative memory written by the context (delta)"),
        ({"layers": ["slot"]}, "Gated associative memory written by the context (slot)"),
        ({"block": "attention"}, "Transformer"),
        ({"layers": ["attention"]}, "Transformer"),
        ({"layers": ["mamba"], "memory": {"kind": "delta"}}, "Mamba"),
        ({"layers": ["static", "attention"]}, "Language model of static and attention layers"),
        (
            {"layers": ["delta", "static", "attention"], "block": "mamba"},
            "Language model of delta, static and attention layers",
        ),
    ],
)
def test_what_is_said_of_a_model_is_asked_of_it(tmp_path, changes, name):
    """The page describes the model's layers, whether model.block or model.layers names them.

    A written memory is no fixed bank, and all that was written reaches a prediction.
    """
    config = to_dict(from_dict(RunConfig, {"model": changes}))
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = Structure(write_report(tmp_path).read_text()).text
    assert f"{name}, 6 layers of width 512." in text
    for words in ("is a fixed bank", "reach a prediction", "reaches a prediction"):
        assert (words in text) == (changes == {}), words


def test_without_matplotlib_the_rest_is_there(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(tmp_path, [line(1)], {"val_perplexity": 7.389})
    assert "need matplotlib" in text and "7.39" in text and "<svg" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="config.json: no such file"):
        write_report(tmp_path)


def test_a_long_run_stays_a_small_page(tmp_path):
    lines = [line(s, loss=5 + math.sin(s), grad_norm=1 + math.cos(s)) for s in range(1, 5001)]
    text = page(tmp_path, lines)
    assert len(text) < 400_000
    assert text.count("opacity: 0.4") == 4  # faint under its mean: loss twice, speed, norm; not lr


def test_means_of_neighbours_leave_out_what_is_not_finite():
    y = np.array([1, 3, np.nan, 5, np.nan, np.nan, 8])
    np.testing.assert_array_equal(_means(y, 2), [2, 5, np.nan, 8])
    assert len(_means(np.arange(3.0 * MAX_POINTS + 1), 4)) <= MAX_POINTS


def test_smoothing_keeps_a_straight_line_its_ends_and_its_gaps():
    y = np.arange(200.0)
    np.testing.assert_allclose(
        _running_mean(y), y, atol=1e-9
    )  # a one-sided mean would bend the ends
    y[50] = np.nan
    smooth = _running_mean(y)
    assert np.isnan(smooth[50]) and np.isfinite(np.delete(smooth, 50)).all()
    noise = np.random.default_rng(0).normal(size=400)
    assert _running_mean(noise)[20:-20].std() < noise.std() / 3  # 21 values a mean: about 1/4.6
