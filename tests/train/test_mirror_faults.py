"""A run's copy at a URL (its mirror), where the URL fails or holds something unexpected."""

import json

import pytest
import torch
from mirrors import mirrored, steps_at, stop_me
from object_store import BUCKET
from whole_runs import after_step, assert_equal_runs, train

from gam_scale import remote
from gam_scale.errors import UserError
from gam_scale.parallel.world import World
from gam_scale.remote import Remote
from gam_scale.train.mirror import NOTE

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


pytestmark = pytest.mark.usefixtures("quiet")


class Outage(Exception):
    pass


def test_an_outage_is_said_once_and_ends_nothing(
    tmp_path, tiny, folder_url, monkeypatch, whole, curve
):
    put, failures = Remote.put, [Outage("try later")] * 3

    def unreliable(self, local, name):
        if failures and "shard" in name:
            raise failures.pop()
        put(self, local, name)

    monkeypatch.setattr(Remote, "put", unreliable)
    monkeypatch.setattr("gam_scale.train.uploads.RETRY_SECONDS", (0.01, 0.01, 0.01, 0.01))
    train(mirrored(tiny, tmp_path / "run", folder_url))
    assert_equal_runs(whole(), tmp_path / "run", curve)
    assert not failures and steps_at(folder_url) == [18, 20]
    log = (tmp_path / "run/logs/rank0.log").read_text()
    assert log.count("Outage: try later") == 1 and log.count("can be written again") == 1


def test_an_end_does_not_wait_for_ever(tmp_path, tiny, folder_url, monkeypatch):
    def fails(self, local, name):
        raise Outage("gone")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "put", fails)
        settings = {"mirror_wait_s": 0.01}
        train(mirrored(tiny, run, folder_url, checkpoint=settings, train={"steps": 4}))
    assert (run / "summary.json").exists() and steps_at(folder_url) == []
    assert "lacks the checkpoint of step 4" in (run / "logs/rank0.log").read_text()
    train(mirrored(tiny, run, folder_url, train={"steps": 4}))
    assert steps_at(folder_url) == [4]


def test_a_stop_by_signal_uploads_first(tmp_path, tiny, folder_url):
    with after_step(9, stop_me):
        train(mirrored(tiny, tmp_path / "run", folder_url))
    assert steps_at(folder_url)[-1] == 9


def test_another_start_that_takes_over_is_left_alone(tmp_path, tiny, folder_url):
    there = Remote(folder_url, "the test")

    def take_over():
        note = json.loads(there.read(NOTE))
        there.write(NOTE, json.dumps(note | {"writer": "other", "host": "node7"}).encode())

    with after_step(1, take_over):
        train(mirrored(tiny, tmp_path / "run", folder_url))
    assert steps_at(folder_url) == []
    log = (tmp_path / "run/logs/rank0.log").read_text()
    assert log.count("is written by another start of this run, on node7") == 1


def test_what_is_another_runs_is_refused(tmp_path, tiny, folder_url):
    short = {"steps": 2, "warmup_steps": 1}
    train(mirrored(tiny, tmp_path / "one", folder_url, train=short))
    train(tiny(tmp_path / "two", train=short))
    with pytest.raises(UserError, match="holds another run than .*two; expected a URL of its own"):
        train(mirrored(tiny, tmp_path / "two", folder_url, train=short))
    with pytest.raises(UserError, match="holds a run, which --fresh removes from its own run"):
        train(mirrored(tiny, tmp_path / "three", folder_url, train=short), fresh=True)
    assert not (tmp_path / "three").exists()
    with pytest.raises(UserError, match="train.lr is 0.5 but the run"):
        train(mirrored(tiny, tmp_path / "four", folder_url, train=short | {"lr": 0.5}))


def test_fresh_removes_the_run_there_too(tmp_path, tiny, folder_url):
    for steps in (6, 2):
        config = mirrored(
            tiny, tmp_path / "run", folder_url, train={"steps": steps, "warmup_steps": 1}
        )
        train(config, fresh=True)
        assert steps_at(folder_url) == [steps]


def test_a_damaged_checkpoint_there_is_named_or_passed_over(
    tmp_path, tiny, folder_url, monkeypatch
):
    monkeypatch.setattr(remote, "RETRY_SECONDS", ())
    config = {"train": {"steps": 12, "schedule": "constant"}, "eval": {"every_steps": 0}}
    train(mirrored(tiny, tmp_path / "run", folder_url, **config))
    there = Remote(folder_url, "the test")
    (shard,) = (n for n in there.sizes() if "12/shard" in n)
    content = bytearray(there.read(shard))
    content[-1] ^= 1
    there.write(shard, bytes(content))
    with pytest.raises(UserError, match="step-00000012, fetched: .*shard.* differs from what was"):
        train(mirrored(tiny, tmp_path / "other", folder_url, **config))
    train(mirrored(tiny, tmp_path / "other", folder_url, checkpoint={"fall_back": True}, **config))
    log = (tmp_path / "other/logs/rank0.log").read_text()
    assert "fetched the checkpoint of step 6 from the mirror" in log


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("runs/mirror", "checkpoint.mirror is runs/mirror; expected s3://BUCKET/FOLDER"),
        ("s4://bucket/run", "is no URL of a known kind .Protocol not known: s4.; expected s3://"),
        ("s3://", "names no folder"),
        ("s3://missing/run", "cannot be used .FileNotFoundError: .*bucket does not exist"),
        ("file:///proc/mirror", "cannot be used .*expected a URL that exists, and that this"),
    ],
)
def test_a_url_that_cannot_be_is_said_at_once(tmp_path, tiny, s3, monkeypatch, url, said):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        train(mirrored(tiny, tmp_path / "run", url))
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize("place", ["run", "run/copy"])
def test_a_mirror_in_the_run_itself_is_refused(tmp_path, tiny, place):
    with pytest.raises(UserError, match="is in log.run_dir .*run itself; expected a folder else"):
        train(mirrored(tiny, tmp_path / "run", f"file://{tmp_path}/{place}"))
    assert not (tmp_path / "run").exists()


def test_rights_that_are_missing_are_said(tmp_path, tiny, monkeypatch, s3):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)

    def denied(self, name, content):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(Remote, "write", denied)
    with pytest.raises(
        UserError, match="cannot be used .PermissionError: Access Denied.; expected"
    ):
        train(mirrored(tiny, tmp_path / "run", f"s3://{BUCKET}/denied"))


def test_a_client_that_is_not_installed_is_named(monkeypatch):
    import fsspec

    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="Install s3fs to access S3.; .*bootstrap.py --extras s3"):
        Remote("s3://bucket/run", "checkpoint.mirror")
