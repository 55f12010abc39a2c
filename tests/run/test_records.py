"""samples.jsonl and layers.jsonl, and what a report shows of them."""

import json

import pytest
from matplotlib.figure import Figure as Canvas
from whole_runs import train

from gam_scale.report.figure import FIXED
from gam_scale.run.layer_figures import MAX_SHOWN, layer_figures
from gam_scale.run.lock import RunLock
from gam_scale.run.records import LAYERS, SAMPLES, Records, medians, read_records, text_of
from gam_scale.run.report import write_report

LAYER = {"horizon": {"all": [1.0, 2.0, None], "heads": [[1.0, 2.0, 3.0]] * 2}}


def test_records_past_the_resumed_step_are_dropped_and_damaged_rows_kept_aside(tmp_path):
    path = tmp_path / LAYERS
    records = Records(path, 0)
    assert not path.exists(), "an empty file"
    for step in (2, 4, 6):
        records.write({"step": step, "layers": [LAYER]})
    damaged = [b"\xff", b"[]", b'{"step": "3"}', b'{"step": 3, "layers": {}}', b'{"step": 3']
    damaged += [b'{"step": 3, "layers": [{"horizon": {"all": [1, 2]}}]}', b'{"step": 3, "text": 5}']
    path.write_bytes(path.read_bytes() + b"\n".join(damaged))
    assert [record["step"] for record in read_records(path)] == [2, 4, 6]
    Records(path, 4).write({"step": 5, "layers": [LAYER]})
    assert [record["step"] for record in read_records(path)] == [2, 4, 5]
    aside = path.with_suffix(".unreadable")
    assert aside.read_bytes().split(b"\n") == [*damaged[:-1], b""]  # the last one was cut short
    assert medians([LAYER, {}]) == {"layers.horizon/00": 2.0}


def test_who_has_lost_the_run_writes_no_record(tmp_path, tiny, monkeypatch):
    """The lock is checked right before each write, since another process may hold it by now."""
    events, write = [], Records.write

    def noted(self, record):
        events.append("write")
        write(self, record)

    monkeypatch.setattr(RunLock, "check", lambda self: events.append("check"))
    monkeypatch.setattr(Records, "write", noted)
    log = {"layers_every": 1, "sample_every": 1}
    train(tiny(tmp_path / "run", train={"steps": 4, "warmup_steps": 1}, log=log))
    writes = [i for i, event in enumerate(events) if event == "write"]
    assert len(writes) == 2 * 4 and all(events[i - 1] == "check" for i in writes)


def test_of_many_layers_some_are_drawn_from_the_first_to_the_last():
    plain = {"gradient": {"all": [1.0, 2.0, 3.0]}}
    records = [{"step": step, "layers": [plain] * 30} for step in (10, 20)]
    (figure,) = layer_figures(records)
    names = [name for _, name in figure.keys]
    assert len(names) == MAX_SHOWN and (names[0], names[-1]) == ("layer 1", "layer 30")
    assert layer_figures([]) == []


@pytest.mark.parametrize("narrow", [False, True])
def test_a_panel_a_layer_has_a_line_a_head(narrow):
    """Of many layers or heads only some are drawn; a layer without heads has one line."""

    def layer(heads):
        quantiles = [[head, head + 1.0, head + 2.0] for head in range(heads)]
        return {"horizon": {"all": [1.0, 2.0, 3.0], "heads": quantiles}}

    none = {"horizon": {"all": [1.0, 400.0, 3.0]}}
    records = [{"step": step, "layers": [layer(20), none, {}, layer(2)]} for step in (10, 20)]
    records.append({"step": 30, "layers": []})  # a record without layers
    (figure,) = layer_figures(records)
    axes = drawn(figure, narrow)
    assert [each.get_title("left") for each in axes] == ["layer 1", "layer 2", "layer 4"]
    lines = [[line.get_ydata()[0] for line in each.lines] for each in axes]
    assert lines == [[1, 4, 6, 9, 12, 15, 17, 20], [400], [1, 2]]
    assert len({each.get_ylim() for each in axes}) == 1 and axes[0].get_yscale() == "log"
    faint, full = (axes[2].lines[i].get_alpha() for i in (0, 1))
    assert faint < full == 1
    assert f"{records[1]['step']}" in figure.svg(narrow)


def drawn(figure, narrow):
    """Draw the figure by matplotlib; return the axes of its panels."""
    canvas = Canvas()
    figure.draw(canvas.add_subplot(), FIXED, narrow)
    return canvas.axes[1:]


def test_a_report_shows_samples_and_layers(tmp_path, tiny):
    run = tmp_path / "run"
    model = {"layers": ["delta", "static"], "memory": {"n_heads": 2}}
    log = {"layers_every": 2, "sample_every": 2, "sample_prompt": "the <cat>"}
    train(tiny(run, model=model, train={"steps": 6}, log=log))
    page = (run / "report.html").read_text()
    for words in ("Horizons", "Writing strength", "Memory gates", "Gradients", "layer 2"):
        assert words in page, words
    assert page.count("the &lt;cat&gt;") == 3 + 1  # samples, and the setting
    assert "after step 4" in page and "after step 6" in page
    # A report also takes records of other models, and steps without a record.
    records = read_records(run / LAYERS)
    odd = [
        {"step": 1, "layers": []},
        *records,
        {"step": 9, "layers": [{"new_one": LAYER["horizon"]}]},
    ]
    (run / LAYERS).write_text("".join(json.dumps(record) + "\n" for record in odd))
    assert "new one" in write_report(run).read_text()
    assert text_of(read_records(run / SAMPLES)[0]).startswith("the <cat>")
