"""Every sink of metrics: what it writes, what a resumed run finds, and faults that end no run."""

import contextlib
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from gam_scale.config import LogConfig, RunConfig
from gam_scale.train.sinks import MetricLog, format_line, setup_logging


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Isolate each test: no variables of wandb, and no logging handlers left behind."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/nowhere")
    logger = logging.getLogger("gam_scale")
    state = logger.propagate, logger.level
    yield
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate, logger.level = state


def line(step: int, **more) -> dict:
    return {"step": step, "tokens": 10 * step, "loss": 5.0 / step, "lr": 3e-4} | more


def config(wandb: str = "off", tensorboard: bool = False) -> RunConfig:
    return RunConfig(log=LogConfig(wandb=wandb, tensorboard=tensorboard))


def steps(path) -> list[int]:
    return [json.loads(row)["step"] for row in path.read_text().splitlines()]


def test_other_ranks_write_nothing(tmp_path):
    with MetricLog(tmp_path / "run", config("auto", True), False, 10) as log:
        log.log(line(1))
    assert not (tmp_path / "run").exists()


def test_console_lines():
    full = line(120, loss=5.1234, perplexity=167.94, grad_norm=0.912, tokens_per_s=12_345.6)
    full |= {"mfu": 0.612, "memory_bytes": 9e8, "data_wait": 0.004, "skipped_steps": 0}
    assert format_line(full, 500) == (
        "step 120/500  loss 5.123  ppl 167.9  lr 3.0e-04  gnorm 0.91  12.3k tok/s  mfu 61%  "
        "mem 0.9 GB  wait 0%"
    )
    more = format_line(full | {"skipped_steps": 2, "val_loss": 4.5, "val_perplexity": 90.02}, 500)
    assert more.endswith("wait 0%  skipped 2  val loss 4.500  val ppl 90.0")
    assert format_line({"step": 1, "loss": math.nan}, 2) == "step 1/2  loss nan"
    braces = format_line({"step": 1, "val_loss/data/{a}": 1.5}, 2)  # a path may have any character
    assert braces == "step 1/2  val loss of data/{a} 1.500"


def test_rank_0_logs_to_console_and_file_other_ranks_to_their_file(tmp_path, capsys):
    setup_logging(tmp_path, 0)
    setup_logging(tmp_path, 0).warning("once")  # setting up twice must not print twice
    assert capsys.readouterr().err == "warning: once\n"
    setup_logging(tmp_path, 1).info("quiet")
    assert capsys.readouterr().err == ""
    assert (tmp_path / "logs/rank0.log").read_text().count("once") == 1
    assert "quiet" in (tmp_path / "logs/rank1.log").read_text()


def test_without_a_terminal_every_line_is_printed(tmp_path, capsys):
    setup_logging(tmp_path, 0)
    with MetricLog(tmp_path, config(), True, 2) as log:
        log.log(line(1))
        log.log(line(2))
    printed = capsys.readouterr().err
    first, second = printed.splitlines()
    assert first == format_line(line(1), 2)
    assert second == format_line(line(2), 2) + "  eta 0:00:00", "a log without time left"
    assert (tmp_path / "logs/rank0.log").read_text().count("step ") == 2


def test_a_sample_in_the_log_commands_no_terminal(tmp_path):
    setup_logging(tmp_path, rank=0)
    with MetricLog(tmp_path, config(), True, 500) as log:
        log.samples(1, [("the cat", "\x1b[31m\u202e sat\non\0")])
    said = (tmp_path / "logs" / "rank0.log").read_text()
    assert said.endswith("step 1, a sample: the cat\\x1b[31m\\u202e sat on\\x00\n")


def test_on_a_terminal_a_bar_moves_and_evaluations_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    setup_logging(tmp_path, 0)
    with MetricLog(tmp_path, config(), True, 2) as log:
        log.log(line(1, grad_norm=1.0))
        log.log(line(2, grad_norm=1.0, val_loss=4.5))
    printed = capsys.readouterr().err
    assert "step 2/2" in printed and "eta 0:00:00" in printed
    assert "val loss 4.500" in printed and printed.count("gnorm") == 1
    assert (tmp_path / "logs/rank0.log").read_text().count("gnorm") == 2


def test_tensorboard_gets_every_finite_number(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricLog(tmp_path, config(tensorboard=True), True, 2) as log:
        log.log(line(1, grad_norm=math.nan))
        log.log(line(2, val_loss=4.0))
    events = reader.EventAccumulator(str(tmp_path / "logs/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 5.0), (2, 2.5)]
    assert [(e.step, e.value) for e in events.Scalars("val/loss")] == [(2, 4.0)]
    assert "train/grad_norm" not in events.Tags()["scalars"]


def test_wandb_offline_without_key_or_network(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # any use of the network is refused
    setup_logging(tmp_path, 0)
    for start in (0, 1):  # the second is the same run, resumed
        with MetricLog(tmp_path, config("auto"), True, 2, start) as log:
            log.log(line(start + 1))
    run_id = (tmp_path / "logs/wandb_id").read_text().strip()
    (folder,) = (tmp_path / "logs/wandb").glob(f"offline-run-*-{run_id}")
    assert [step for step, *_ in wandb_steps(folder)] == [1, 2]
    said = "".join(capfd.readouterr()).splitlines()
    ours = [row for row in said if row.startswith("wandb logs offline to ")]
    assert len(ours) == 2 and ours[1].endswith(f"`wandb sync {folder}` uploads it")
    assert not any("wandb" in row for row in said if row not in ours), "wandb talks on the console"


def wandb_records(path) -> Iterator[bytes]:
    """Yield a .wandb file's records: LevelDB's log format, in blocks of 32 KiB after a header."""
    data, at, record = path.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield record
            record = b""


def finished_records(folder) -> list:
    """Wait until wandb has finished its file in ``folder``; return all records."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    records, deadline = [], time.monotonic() + 30
    while not any(record.HasField("exit") for record in records):
        assert time.monotonic() < deadline, "wandb has not finished its file"
        time.sleep(0.05)
        with contextlib.suppress(DecodeError):  # wandb's service is still writing
            records = [*map(Record.FromString, wandb_records(next(folder.glob("*.wandb"))))]
    return records


def wandb_steps(folder) -> list[tuple[int, int, float]]:
    """Return (wandb's step, training step, loss) for every row in a finished run's folder."""
    rows = []
    for record in finished_records(folder):
        if record.HasField("history"):
            items = record.history.item
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in items}
            rows.append((row["_step"], row["step"], row["train/loss"]))
    return rows


def test_wandb_knows_a_run_as_it_is_told_to_and_resumed_as_the_same(tmp_path):
    pytest.importorskip("wandb")
    setup_logging(tmp_path, 0)
    told = {"entity": "team", "project": "gam", "group": "widths", "notes": "a first try"}
    names = {f"wandb_{key}": value for key, value in told.items()}
    log = LogConfig(wandb="offline", tensorboard=False, wandb_tags=["wide", "gpu"], **names)
    runs = []
    for start in (0, 1):
        with MetricLog(tmp_path, RunConfig(log=log), True, 2, start) as lines:
            lines.log(line(start + 1))
        (folder,) = (tmp_path / "logs/wandb").glob("offline-run-*")
        (run,) = (r.run for r in finished_records(folder) if r.HasField("run"))
        runs.append(run)
    first, resumed = runs
    assert {key: getattr(first, "run_group" if key == "group" else key) for key in told} == told
    assert sorted(first.tags) == ["gpu", "wide"] and first.display_name == tmp_path.name
    assert resumed.run_id == first.run_id == (tmp_path / "logs/wandb_id").read_text().strip()


def test_what_wandb_is_not_told_is_left_to_its_own_settings(tmp_path, monkeypatch):
    """None leaves WANDB_ENTITY, WANDB_TAGS and the like in force; an empty text would not."""
    asked = {}
    fake = SimpleNamespace(init=lambda **kwargs: asked.update(kwargs) or fake_run(), Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    MetricLog(tmp_path, config("offline"), True, 1).close()
    assert [asked[name] for name in ("entity", "group", "notes", "tags")] == [None] * 4


@pytest.mark.parametrize("lost", [False, True], ids=["steps done twice", "first part lost"])
def test_after_a_kill_wandb_has_each_step_once(tmp_path, lost):
    """The run is killed after step 4 and resumes from the checkpoint of step 2."""
    pytest.importorskip("wandb")
    setup_logging(tmp_path, 0)
    folder = tmp_path / "logs" / "wandb"
    with MetricLog(tmp_path, config("offline"), True, 6) as log:
        for step in (1, 2, 3, 4):
            log.log(line(step, loss=9.0 if step > 2 else 5.0))
    if lost:  # wandb had not written it yet
        shutil.rmtree(next(folder.glob("offline-run-*")))
    with MetricLog(tmp_path, config("offline"), True, 6, 2) as log:
        for step in (3, 4, 5, 6):
            log.log(line(step, loss=5.0))
    runs = list(folder.glob("offline-run-*"))
    rows = sorted(row for run in runs for row in wandb_steps(run))
    assert rows == [(step, step, 5.0) for step in range(1, 7)], "wandb repeats or lacks steps"
    assert len(runs) == 1


def test_online_only_what_the_service_lacks_is_sent(tmp_path, monkeypatch):
    sent = []
    run = fake_run(step=4, log=lambda row, step, commit: sent.append((step, row["train/loss"])))
    fake = SimpleNamespace(init=lambda **kwargs: run, Settings=dict, login=lambda **kwargs: True)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(line(step)) + "\n" for step in range(1, 10))
    )
    with MetricLog(tmp_path, config("auto"), True, 8, 6) as log:
        log.log(line(7))
    assert [step for step, _ in sent] == [4, 5, 6, 7], "wandb repeats or lacks steps"


def test_a_kill_takes_no_line_from_tensorboard(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = MetricLog(tmp_path, config(tensorboard=True), True, 2)
    log.log(line(1))  # not closed, as after a kill
    events = reader.EventAccumulator(str(tmp_path / "logs/tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 5.0)]
    log.close()


LAYERS = [{"beta": {"all": [0.1, 0.5, 0.9]}}, {"beta": {"all": [0.2, None, 0.8]}}]


def test_tensorboard_has_samples_and_layers(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricLog(tmp_path, config(tensorboard=True), True, 10) as log:
        log.layers(5, LAYERS)
        log.samples(5, [("the ", "cat")])
        log.log(line(5))
    events = reader.EventAccumulator(str(tmp_path / "logs/tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("layers.beta/00")] == [(5, 0.5)]
    assert "layers.beta/01" not in events.Tags()["scalars"], "a number that is none is drawn"
    (text,) = events.Tensors("sample/text_summary")
    assert list(text.tensor_proto.string_val) == [b"the cat"]


def test_wandb_has_samples_and_layers_in_their_steps(tmp_path, monkeypatch):
    """A resumed run hands all records over again, with the same steps and in the same order."""
    rows = []
    run = fake_run(log=lambda row, step, commit: rows.append((step, commit, sorted(row))))
    fake = SimpleNamespace(
        init=lambda **kwargs: run, Settings=dict, Table=lambda columns, data: data
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with MetricLog(tmp_path, config("offline"), True, 9) as log:
        log.layers(3, LAYERS)
        log.samples(5, [("the ", "cat")])
        log.layers(5, LAYERS)
        log.log(line(5))
    first, again = list(rows), rows
    again.clear()
    with MetricLog(tmp_path, config("offline"), True, 9, 5):
        pass
    kinds = [(step, commit) for step, commit, _ in first]
    assert kinds == [(3, False), (5, False), (5, False), (5, True)]
    assert first[0][2] == ["layers.beta/00", "step"] and first[1][2] == ["samples", "step"]
    assert again == first


def fake_run(**parts) -> SimpleNamespace:
    """Return a stand-in for what wandb.init returns; ``parts`` replace its attributes."""
    nothing = {"step": 0, "dir": "d/files", "finish": int, "log": lambda *a, **k: None}
    return SimpleNamespace(**nothing | {"define_metric": lambda *a, **k: None} | parts)


def failing_wandb(where: str):
    """Return a stand-in for wandb that raises in ``where``: init, define, log or finish."""

    def fail_in(name):
        def call(*args, **kwargs):
            if name == where:
                raise RuntimeError("service says no\nat length")

        return call

    run = fake_run(define_metric=fail_in("define"), log=fail_in("log"), finish=fail_in("finish"))
    return SimpleNamespace(
        init=lambda **kwargs: fail_in("init")() or run,
        Settings=lambda **kwargs: kwargs,
        teardown=lambda: None,
        login=lambda **kwargs: False,
    )


@pytest.mark.parametrize("where", ["init", "define", "log", "finish"])
def test_a_failing_wandb_costs_one_line_and_no_run(tmp_path, monkeypatch, capsys, where):
    monkeypatch.setitem(sys.modules, "wandb", failing_wandb(where))
    setup_logging(tmp_path, 0)
    with MetricLog(tmp_path, config("auto"), True, 2) as log:
        log.log(line(1))
        log.log(line(2))
    assert capsys.readouterr().err.count("warning: wandb off: service says no\n") == 1
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]


def test_wandb_goes_offline_where_its_service_cannot_be_reached(tmp_path, monkeypatch, capsys):
    modes, logged = [], []

    def init(mode, **kwargs):
        modes.append(mode)
        if mode == "online":
            raise RuntimeError("no route")
        return fake_run(log=lambda row, **kwargs: logged.append(row))

    fake = SimpleNamespace(init=init, Settings=dict, teardown=lambda: modes.append("teardown"))
    fake.login = lambda **kwargs: True
    monkeypatch.setitem(sys.modules, "wandb", fake)
    setup_logging(tmp_path, 0)
    with MetricLog(tmp_path, config("auto"), True, 1) as log:
        log.log(line(1))
    assert modes == ["online", "teardown", "offline"]
    assert logged[0]["step"] == 1 and logged[0]["train/loss"] == 5.0
    said = capsys.readouterr().err
    assert "wandb logs offline: no route" in said
    assert "wandb logs offline to d; `wandb sync d` uploads it" in said


NETRC = "machine api.wandb.ai login user password " + "k" * 40


@pytest.mark.parametrize(
    ("wandb", "given", "expected"),
    [
        ("auto", {"WANDB_API_KEY": "k" * 40}, ["online"]),
        ("auto", {"NETRC": NETRC}, ["online"]),
        ("auto", {}, ["offline"]),
        ("auto", {"WANDB_API_KEY": "short"}, ["offline"]),
        ("offline", {"WANDB_API_KEY": "k" * 40}, ["offline"]),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "offline"}, ["offline"]),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "dryrun"}, ["offline"]),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "online"}, ["online"]),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "disabled"}, []),
        ("offline", {"WANDB_MODE": "disabled"}, ["offline"]),
    ],
)
def test_wandb_is_online_with_a_key_where_nothing_forbids_it(
    tmp_path, monkeypatch, capsys, wandb, given, expected
):
    real, modes = pytest.importorskip("wandb"), []
    for name, value in given.items():
        if name == "NETRC":
            (tmp_path / "netrc").write_text(value)
            value = str(tmp_path / "netrc")
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(real, "init", lambda mode, **k: modes.append(mode) or fake_run())
    real.teardown()  # it keeps a key that it has found
    setup_logging(tmp_path, 0)
    MetricLog(tmp_path / "run", config(wandb), True, 1).close()
    real.teardown()
    assert modes == expected
    said = capsys.readouterr().err
    assert said.count("wandb sync d") == ("offline" in expected), said
    assert ("wandb off: WANDB_MODE is disabled" in said) == (not expected), said


@pytest.mark.parametrize("name", ["wandb", "torch.utils.tensorboard"])
def test_a_package_that_is_missing_is_one_line(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)  # import raises ImportError
    setup_logging(tmp_path, 0)
    one = config("auto") if name == "wandb" else config(tensorboard=True)
    with MetricLog(tmp_path, one, True, 1) as log:
        log.log(line(1))
    assert capsys.readouterr().err.count("is not installed\n") == 1
    assert steps(tmp_path / "metrics.jsonl") == [1]
