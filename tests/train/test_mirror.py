"""A run's copy at a URL: what is there, what comes back, whatever kills or fails meanwhile."""

import json
import logging
import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from object_store import BUCKET, s3_server
from ranks import run_ranks
from warm import ROOT, program
from whole_runs import after_step, assert_equal_runs, killed_after, train

from gam_scale import remote
from gam_scale.checkpoint.fetch import checkpoints_in, whole_steps
from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.store import CheckpointStore, best_checkpoint, resolve
from gam_scale.checkpoint.verify import verify_checkpoint
from gam_scale.config import CheckpointConfig
from gam_scale.errors import UserError
from gam_scale.files import CHECKSUMS
from gam_scale.parallel.world import World
from gam_scale.remote import Remote
from gam_scale.run.directory import RunDir
from gam_scale.train import mirror as mirror_module
from gam_scale.train.mirror import NOTE, Mirror, read_note, records_in

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def s3():
    """The environment in which s3:// is a server of these tests."""
    with s3_server() as env:
        yield env


@pytest.fixture(params=["file", "s3"])
def url(request, tmp_path, monkeypatch):
    """An empty folder at a URL."""
    if request.param == "file":
        return f"file://{tmp_path}/mirror"
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def folder_url(tmp_path):
    """Likewise, on this disk: for what does not depend on the service."""
    return f"file://{tmp_path}/mirror"


def stop_me() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def steps_at(url: str) -> list[int]:
    return whole_steps(checkpoints_in(Remote(url, "the test").sizes()))


def mirrored(tiny, run: Path, url: str, **changes: dict) -> dict:
    checkpoint = {"mirror": url, "every_steps": 6} | changes.pop("checkpoint", {})
    return tiny(run, checkpoint=checkpoint, **changes)


def test_a_machine_with_an_empty_directory_goes_on(tmp_path, tiny, whole, curve, url):
    note = tmp_path / "first/logs/wandb_id"
    with killed_after(15), after_step(2, lambda: note.write_text("run-1")):
        train(mirrored(tiny, tmp_path / "first", url))
    assert steps_at(url)[-1] <= 12
    train(mirrored(tiny, tmp_path / "second", url))
    assert_equal_runs(whole(), tmp_path / "second", curve)
    there, here = steps_at(url), CheckpointStore(tmp_path / "second" / "checkpoints")
    assert there == here.steps() == [18, 20], "other checkpoints are kept than here"
    names = records_in(tmp_path / "second")
    wanted = {"config.json", "metrics.jsonl", "report.html", "summary.json", "logs/wandb_id"}
    assert wanted < set(names), "wandb would take the run for another one"
    for name in names:
        content = (tmp_path / "second" / name).read_bytes()
        assert Remote(url, "the test").read(name) == content, name


def test_a_finished_run_is_finished_elsewhere_too(tmp_path, tiny, folder_url, capsys):
    short = {"steps": 4, "schedule": "constant"}
    train(mirrored(tiny, tmp_path / "first", folder_url, train=short))
    capsys.readouterr()
    train(mirrored(tiny, tmp_path / "second", folder_url, train=short))
    assert "validation perplexity" in capsys.readouterr().out
    summaries = [(tmp_path / run / "summary.json").read_bytes() for run in ("first", "second")]
    assert summaries[0] == summaries[1]


def test_who_is_behind_takes_what_is_ahead(tmp_path, tiny, whole, curve, folder_url):
    """A node with its own disk, given up for another, comes back."""
    with killed_after(8):
        train(mirrored(tiny, tmp_path / "first", folder_url))
    shutil.copytree(tmp_path / "first", tmp_path / "kept")
    with after_step(14, stop_me):
        train(mirrored(tiny, tmp_path / "first", folder_url))
    train(mirrored(tiny, tmp_path / "kept", folder_url))
    assert_equal_runs(whole(), tmp_path / "kept", curve)
    assert "fetched the checkpoint" in (tmp_path / "kept/logs/rank0.log").read_text()


@pytest.mark.parametrize("engine", [pytest.param("deepspeed", marks=pytest.mark.matrix), "fsdp"])
def test_several_ranks_upload_and_fetch_their_shares(tmp_path, tiny, engine, curve):
    url = f"file://{tmp_path}/mirror"
    parallel = {"engine": engine, "device": "cpu"} | ({"zero_stage": 2} if engine[0] == "d" else {})
    configs = [
        mirrored(tiny, tmp_path / name, url, parallel=parallel) for name in ("first", "second")
    ]
    run_ranks(_train_until, 2, config=configs[0], step=15)
    run_ranks(_train_until, 2, config=configs[1], step=0)
    configs[0]["log"]["run_dir"], configs[0]["checkpoint"] = (
        str(tmp_path / "plain"),
        {"every_steps": 6},
    )
    run_ranks(_train_until, 2, config=configs[0], step=0)
    assert_equal_runs(tmp_path / "plain", tmp_path / "second", curve)
    files = {path.name for path in (tmp_path / "mirror/checkpoints/step-00000020").iterdir()}
    assert {f"shard-0000{rank}-of-00002.safetensors" for rank in (0, 1)} < files


def _train_until(world, config: dict, step: int) -> None:
    if step:
        with killed_after(step):
            train(config)
    else:
        train(config)


MORE = [pytest.param(seed, marks=pytest.mark.matrix) for seed in range(1, 12)]


@pytest.mark.parametrize("seed", [0, *MORE])
def test_kills_at_any_instant_lose_no_more_than_is_not_there(
    tmp_path, tiny, whole, curve, url, seed
):
    """Each start is on a machine of its own; the last of them trains to the end."""
    rng, slow = random.Random(seed), "import time\nfrom gam_scale.remote import Remote\n"
    slow += "put = Remote.put\ndef slowly(self, local, name):\n    time.sleep(0.05)\n"
    slow += "    put(self, local, name)\nRemote.put = slowly\n"
    script = tmp_path / "pretrain.py"
    script.write_text(
        slow + "import runpy\nrunpy.run_path('tools/pretrain.py', run_name='__main__')"
    )
    for start in range(3):
        config = tmp_path / "config.json"
        config.write_text(json.dumps(mirrored(tiny, tmp_path / str(start), url)))
        job = program([script, "--config", config], cwd=ROOT)
        if start == 2:
            assert job.wait(100) == 0, job.err
            break
        first = tmp_path / str(start) / "checkpoints"
        deadline = time.monotonic() + 60
        while not list(first.glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.0))
        job.kill()
        for step in steps_at(url):  # whatever counts there is whole
            verify_checkpoint(resolve(f"{url}/checkpoints/step-{step:08d}", tmp_path / "cache"))
    assert_equal_runs(whole(), tmp_path / "2", curve)
    assert steps_at(url) == [18, 20]


def test_what_a_kill_left_unsealed_is_uploaded_by_the_next_start(tmp_path, tiny, folder_url):
    run, settings = tmp_path / "run", {"steps": 6, "schedule": "constant"}
    train(mirrored(tiny, run, folder_url, train=settings))
    there = Remote(folder_url, "the test")
    there.remove([f"checkpoints/step-00000006/{CHECKSUMS}", "checkpoints/step-00000006/state.json"])
    there.write("checkpoints/step-00000003/index.json", b"{}")
    train(mirrored(tiny, run, folder_url, train=settings))
    assert steps_at(folder_url) == [6]
    assert checkpoints_in(there.sizes()).keys() == {6}, "an unsealed checkpoint is left there"


def test_half_of_a_step_done_anew_never_looks_whole(tmp_path, tiny, folder_url, monkeypatch):
    """Over a whole checkpoint of that step, as where a damaged one was passed over here."""
    config = mirrored(
        tiny, tmp_path / "run", folder_url, train={"steps": 6, "schedule": "constant"}
    )
    train(config)
    run, there, put = RunDir(tmp_path / "run"), Remote(folder_url, "the test"), Remote.put
    name = read_note(run.mirror.read_bytes())["run"]
    mirror = Mirror(run, ALONE, CheckpointConfig(), there, name)
    mirror.begin()
    whole: dict[str, list[int]] = {}

    def watched(remote, local, name):
        whole[name] = steps_at(folder_url)
        put(remote, local, name)

    monkeypatch.setattr(Remote, "put", watched)
    mirror.add(6)
    mirror.finish(lambda: False)
    shards = [name for name in whole if "step-00000006/" in name]
    assert len(shards) > 3 and all(whole[name] == [] for name in shards)
    assert steps_at(folder_url) == [6]


def test_who_took_over_is_named(tmp_path, folder_url, monkeypatch):
    there, said = Remote(folder_url, "the test"), []
    monkeypatch.setattr(mirror_module.logger, "error", lambda form, *args: said.append(form % args))
    for name in ("ours", "theirs"):
        there.write(NOTE, json.dumps({"run": name, "writer": "other", "host": "node7"}).encode())
        mirror = Mirror(RunDir(tmp_path / "run"), ALONE, CheckpointConfig(), there, "ours")
        assert mirror._is_taken_over() and mirror._is_taken_over()
    assert [line.partition(" is written by ")[2].partition(":")[0] for line in said] == [
        "another start of this run, on node7",
        "another run, on node7",
    ]


def test_training_waits_for_no_upload(tmp_path, tiny, folder_url, monkeypatch):
    """It ends although the first file is on its way until the last step."""
    over, put, here = threading.Event(), Remote.put, []

    def stuck(self, local, name):
        assert over.wait(60), "training waits for an upload"
        put(self, local, name)

    def look():
        here.extend(CheckpointStore(tmp_path / "run/checkpoints").steps())
        over.set()

    monkeypatch.setattr(Remote, "put", stuck)
    settings = {"every_steps": 3, "keep_last": 1, "keep_best": False}
    with after_step(19, look):
        train(mirrored(tiny, tmp_path / "run", folder_url, checkpoint=settings))
    assert 3 in here and len(here) <= 3, "what is being uploaded was removed, or more is kept"
    assert steps_at(folder_url) == CheckpointStore(tmp_path / "run/checkpoints").steps() == [20]


def test_a_requeued_job_goes_on_elsewhere_though_it_says_fresh(
    tmp_path, tiny, folder_url, monkeypatch, whole, curve
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with killed_after(14):
        train(mirrored(tiny, tmp_path / "first", folder_url), fresh=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(mirrored(tiny, tmp_path / "second", folder_url), fresh=True)
    assert_equal_runs(whole(), tmp_path / "second", curve)
    assert "fetched the checkpoint" in (tmp_path / "second/logs/rank0.log").read_text()


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


def test_tools_and_other_runs_read_a_url(tmp_path, tiny, url, monkeypatch, run_tool, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = {"steps": 6, "schedule": "constant"}
    train(mirrored(tiny, tmp_path / "run", url, train=short))
    here = load_trained(tmp_path / "run")
    for place in (url, f"{url}/checkpoints", f"{url}/checkpoints/step-00000006/"):
        there = load_trained(Path(place))  # a path has one slash where a URL has two
        assert there.step == here.step == 6
    capsys.readouterr()
    assert run_tool("generate", url, "the ", "--max-tokens", 4, "--temperature", 0) == 0
    text = capsys.readouterr().out
    assert (
        run_tool("generate", tmp_path / "run", "the ", "--max-tokens", 4, "--temperature", 0) == 0
    )
    assert capsys.readouterr().out == text
    assert best_checkpoint(url).name == best_checkpoint(tmp_path / "run").name
    with pytest.raises(UserError, match="holds no best checkpoint"):
        best_checkpoint(f"{url}/nothing")
    Remote(url, "the test").write("checkpoints/best.json", b"[6")
    with pytest.raises(UserError, match="holds no best checkpoint"):
        best_checkpoint(url)
    for key in ("continue_from", "init_from"):
        train(tiny(tmp_path / key, checkpoint={key: url}, train={"steps": 2, "warmup_steps": 1}))
    origin = json.loads((tmp_path / "continue_from/continued.json").read_text())
    assert origin["step"] == 6


def test_data_and_mirror_at_one_server(tmp_path, tiny, s3, monkeypatch, prepared_set, whole, curve):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    there = Remote(f"s3://{BUCKET}/data", "the test")
    for path in filter(Path.is_file, prepared_set.rglob("*")):
        there.put(path, path.relative_to(prepared_set).as_posix())
    url = f"s3://{BUCKET}/both"
    config = mirrored(tiny, tmp_path / "run", url, data={"sets": [{"path": there.url}]})
    with killed_after(8):
        train(config)
    shutil.rmtree(tmp_path / "run")
    train(config)
    assert_equal_runs(whole(), tmp_path / "run", curve)


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


@pytest.fixture(autouse=True)
def _quiet():
    """Logging handlers of runs are not left to others."""
    yield
    logger = logging.getLogger("gam_scale")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
