"""metrics.jsonl: what is written, and what a reader and a resumed run find after a kill."""

import json
import logging
import math
import os

import pytest
from whole_runs import train

from gam_scale.run.metrics_file import JsonLines, read_metrics


def line(step: int, **more) -> dict:
    return {"step": step, "loss": 5.0 / step} | more


def steps(path) -> list[int]:
    return [json.loads(row)["step"] for row in path.read_text().splitlines()]


def test_numbers_that_json_lacks_become_null(tmp_path):
    sink = JsonLines(tmp_path / "m.jsonl")
    sink.write(line(1, loss=math.nan, perplexity=math.inf, grad_norm=-math.inf))
    row = (tmp_path / "m.jsonl").read_text()  # flushed: readable while the run goes on
    assert json.loads(row) == line(1, loss=None, perplexity=None, grad_norm=None)
    sink.close()


@pytest.mark.parametrize(
    ("resume", "kept"), [(0, []), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (9, [1, 2, 3, 4, 5])]
)
def test_a_resumed_run_drops_the_lines_past_its_checkpoint(tmp_path, resume, kept):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line(s)) + "\n" for s in range(1, 6)))
    sink = JsonLines(path, resume)
    assert steps(path) == kept
    sink.write(line(resume + 1))
    sink.close()
    assert steps(path) == [*kept, resume + 1]
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3', "12", "\x00\x00", "\n\n"])
def test_a_line_cut_by_a_kill_is_mended(tmp_path, cut):
    path = tmp_path / "m.jsonl"
    path.write_text(f"{json.dumps(line(1))}\n{json.dumps(line(2))}\n{cut}")
    assert [m["step"] for m in read_metrics(path)] == [1, 2]
    JsonLines(path, 5).close()
    assert steps(path) == [1, 2]


UNREADABLE = (
    *(b'{"step": 2, "loss": ', b"\x00\x00\x00", b'{"step": 2, "loss": "\xff"}', b"[1]", b"7"),
    *(b'{"loss": 1.0}', b'{"step": "2"}', b'{"step": 2, "loss": "low"}', b'{"step": 2, "a": [1]}'),
    *(b"9" * 5000, b"[" * 100_000, b'{"step": 2, "step": 3}'),
)


@pytest.mark.parametrize("row", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_row_that_no_kill_left_is_kept_aside_and_said(tmp_path, row, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    path = tmp_path / "m.jsonl"
    rows = [json.dumps(line(1)).encode(), row, json.dumps(line(3)).encode(), b""]
    path.write_bytes(b"\n".join(rows))
    for start in range(2):
        assert [m["step"] for m in read_metrics(path)] == [1, 3]
        assert ("1 rows cannot be read" in caplog.text) or start, "metrics: nothing is said"
        JsonLines(path, 5).close()
        kept = (tmp_path / "m.unreadable").read_bytes()
        assert kept == row + b"\n", "metrics: an unreadable row is dropped"
    path.write_bytes(row + b"\n" + b"{]\n")  # the same once more, and another one
    JsonLines(path, 5).close()
    assert (tmp_path / "m.unreadable").read_bytes() == row + b"\n{]\n"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(line(1)))
    sink = JsonLines(path, 1)
    sink.write(line(2))
    sink.close()
    assert steps(path) == [1, 2]


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "missing.jsonl") == []


def test_a_start_that_drops_nothing_writes_nothing(tmp_path):
    path = tmp_path / "m.jsonl"
    sink = JsonLines(path)
    for step in (1, 2):
        sink.write(line(step))
    sink.close()
    before = path.stat().st_ino
    JsonLines(path, 2).close()
    assert path.stat().st_ino == before and steps(path) == [1, 2], "the same file was written anew"
    JsonLines(path, 1).close()
    assert steps(path) == [1]


def test_lines_are_on_disk_before_a_checkpoint_counts_them(tmp_path, tiny, monkeypatch):
    synced, path = [], tmp_path / "run" / "metrics.jsonl"
    monkeypatch.setattr(JsonLines, "sync", lambda self: synced.append(steps(path)[-1]))
    train(tiny(tmp_path / "run", train={"steps": 8}))
    assert synced == [4, 8], "not at every save (of steps 6 and 8), or before the step's own line"
    monkeypatch.undo()
    sink, calls = JsonLines(tmp_path / "m.jsonl"), []
    monkeypatch.setattr(os, "fsync", calls.append)
    sink.sync()
    sink.close()
    assert len(calls) == 1
