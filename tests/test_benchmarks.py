"""What benchmarks are asked for is what they measure."""

import json

import pytest

from benchmarks import context, train_step
from gam_scale.errors import UserError

SMALL = ["--d-model", "16", "--n-layers", "1", "--vocab-size", "50", "--device", "cpu"]


@pytest.mark.parametrize("part", ["block", "model", "generate", "exchange"])
def test_every_part_of_the_context_benchmark_measures_at_the_lengths_asked_for(monkeypatch, part):
    monkeypatch.setattr("sys.argv", ["context", part, "--lengths", "40,20", *SMALL])
    assert context.parse().lengths == [20, 40], "--lengths is ignored"
    monkeypatch.setattr("sys.argv", ["context", part, *SMALL])
    assert context.parse().lengths == context.LENGTHS[part]


def test_generation_is_timed_at_the_lengths_asked_for(monkeypatch, capsys):
    typed = ["generate", "--lengths", "9,3,6", "--row", "static", *SMALL]
    monkeypatch.setattr("sys.argv", ["context", *typed])
    context.main()
    row = json.loads(capsys.readouterr().out)
    assert len(row["ms"]) == 3, "--lengths is ignored"


def test_an_unknown_kind_is_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["context", "block", "--kinds", "delta,gru"])
    with pytest.raises(UserError, match="--kinds is gru; expected one of attention, delta"):
        context.parse()


@pytest.mark.parametrize("row", ["plain", "gam", "gam:full"])
def test_a_row_of_the_step_benchmark_is_measured(monkeypatch, row):
    size = [*SMALL, "--batch", "1", "--seq-len", "8", "--steps", "1", "--eager"]
    monkeypatch.setattr("sys.argv", ["train_step", *size, "--row", row])
    found = train_step.measure(train_step.parse())
    assert found["mode"] == "eager" and found["tensor_bytes"] > 0
    assert found["ms"] > 0 and 0 < found["of_matmul"] < 2
