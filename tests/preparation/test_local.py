"""Tasks as processes of this machine can be killed, interrupted and taken up again."""

import os
import signal
from pathlib import Path

import pytest

from gam_scale.data.prepare import PrepareSpec
from gam_scale.data.sources import parse_source
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.files import write_bytes
from gam_scale.preparation import parts
from gam_scale.preparation.array import Local, Size, failure_error, follow, share_out
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.saved import done_items

ITEMS = ["00000", "00001", "00002"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A preparation of three parts, of which only the tokenizer is done."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number} of three\n" * 1000)
    model = tmp_path / "t.model"
    train_tokenizer([(tmp_path / "0.txt").read_text()], model, 275)
    source = parse_source(str(tmp_path / "?.txt"))
    made = Folder.of(tmp_path / "set")
    made.path.mkdir()
    made.begin(PrepareSpec(tmp_path / "set", [source], tokenizer=model, valid_fraction=0))
    write_bytes(made.set / "tokenizer.model", model.read_bytes())
    return made


def begun(folder: Folder, items: list[str], tasks: int, processes: int) -> Local:
    weights = dict.fromkeys(items, 1)
    size = Size(tasks, processes)
    return Local(share_out(folder, "tokenised", weights, size), folder.jobs)


def test_a_killed_task_is_named_and_its_items_are_done_again(folder, capsys):
    array = begun(folder, ITEMS, tasks=2, processes=1)
    array._workers[0]._child.kill()
    failures = follow(array, lambda: None)
    assert [f.reason for f in failures] == ["killed by SIGKILL"]
    done = done_items(folder / "tokenised")
    assert done == {"00001"}, "what the other task had"
    error = failure_error("tokenising", 2, failures)
    assert "2 items are not done; what is done stays" in str(error)
    assert f"its log is {failures[0].log}" in capsys.readouterr().err
    assert follow(begun(folder, ITEMS, tasks=1, processes=2), lambda: None) == []
    assert done_items(folder / "tokenised") == set(ITEMS)
    log = (folder.jobs / "tokenised-0.log").read_text()
    assert "2 of 3 items are to be done" in log


def test_ctrl_c_ends_the_tasks(folder):
    array = begun(folder, ITEMS, tasks=1, processes=1)
    child = array._workers[0]._child
    os.kill(child.pid, signal.SIGSTOP)  # stopped, it cannot end before SIGCONT

    def interrupted():
        os.kill(child.pid, signal.SIGCONT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(array, interrupted)
    assert child.poll() == -signal.SIGTERM
    assert not Path(f"/proc/{child.pid}").exists() and not done_items(folder / "tokenised")
