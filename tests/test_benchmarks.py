"""Benchmarks measure what they are asked for."""

import json

import pytest

from benchmarks import checkpoint, context, engines, precision, train_step
from gam_scale.errors import UserError

SMALL = ["--d-model", "16", "--n-layers", "1", "--vocab-size", "50", "--device", "cpu"]

TINY = [*SMALL, "--seq-len", "8", "--batch", "1", "--steps", "1"]


@pytest.fixture
def printed(monkeypatch, capsys):
    """``printed(benchmark, *words)`` -> what its command line prints, run without compiling."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    for benchmark in (engines, checkpoint):
        monkeypatch.setattr(benchmark, "can_compile", lambda device: (False, "a test"))

    def run(benchmark, *words):
        monkeypatch.setattr("sys.argv", [benchmark.__name__, *words])
        capsys.readouterr()
        benchmark.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def figures(printed):
    """``figures(benchmark, *words)`` -> a row's figures, which parents read from the last line."""
    return lambda *typed: json.loads(printed(*typed).splitlines()[-1])


def cells(table):
    """Return the cells of a printed table, by the name of the row."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {name: found for name, *found in rows[1:]}


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


@pytest.mark.parametrize("row", ["plain", "gam", "gam:full", "mamba2"])
def test_a_row_of_the_step_benchmark_is_measured(monkeypatch, row):
    size = [*SMALL, "--batch", "1", "--seq-len", "8", "--steps", "1", "--eager"]
    monkeypatch.setattr("sys.argv", ["train_step", *size, "--row", row])
    found = train_step.measure(train_step.parse())
    assert found["mode"] == "eager" and found["tensor_bytes"] > 0
    assert found["ms"] > 0 and 0 < found["of_matmul"] < 2


@pytest.mark.parametrize("row", ["raw", "torch", "zero 1", "fsdp"])
def test_a_row_of_the_engines_benchmark_is_measured(figures, row):
    found = figures(engines, *TINY, "--paired", "--row", row)
    assert found["ms"] > 0 and found["quotient"] > 0
    assert found["process"] > found["held"] > 0


def test_the_engines_benchmark_starts_its_ranks_and_prints_a_table(printed):
    rows = cells(printed(engines, *TINY, "--ranks", "1", "--rows", "raw"))
    assert rows["raw"][0] == "1" and rows["raw"][2] == "1.000"


def test_the_checkpoint_benchmark_measures_saving_and_loading(figures, tmp_path):
    size = [*TINY, "--engine", "torch", "--ranks", "1", "--saves", "1", "--folder", str(tmp_path)]
    for row in ("background", "synchronous"):
        found = figures(checkpoint, *size, "--row", row)
        assert found["step"] > 0 and found["on_disk"] > 0 and found["bytes"] > 1000
    found = figures(checkpoint, *size, "--row", "load")
    assert found["own"] > found["parameter"] > 0 and found["seconds"] > 0


def test_the_precision_benchmark_finds_bf16_beside_fp32(printed):
    size = ["--d-model", "16", "--n-heads", "1", "--vocab-size", "50", "--device", "cpu"]
    size += ["--lengths", "16", "--layers", "delta", "--seeds", "1", "--backend", "eager"]
    table = printed(precision, *size)
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:4] == "| 16"]
    assert [name for _, name, *_ in rows] == list(precision.ROWS)
    for _, _, *errors in rows:
        assert all(0 < float(error) < 0.5 for error in errors), table
