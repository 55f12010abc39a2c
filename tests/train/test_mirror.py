"""A run's copy at a URL (its mirror): it is whole and can be resumed, whenever a kill comes."""

import json
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from mirrors import mirrored, steps_at, stop_me
from object_store import BUCKET
from ranks import run_ranks
from warm import ROOT, program
from whole_runs import after_step, assert_equal_runs, killed_after, train

from gam_scale.checkpoint.fetch import checkpoints_in
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


pytestmark = pytest.mark.usefixtures("quiet")


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
    """A job returns to a node whose own disk holds an older state of the run."""
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
    """Each start has an empty run directory, as on another machine; the last trains to the end."""
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
        for step in steps_at(url):  # whatever counts as a checkpoint there is whole
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
    """Step 6 is uploaded anew over a whole step 6, as when a damaged local one was passed over."""
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


def test_what_is_pruned_while_it_waits_is_not_uploaded(tmp_path, tiny, folder_url):
    """A kill during an upload leaves more checkpoints than are kept: all wait at the next start."""
    train(mirrored(tiny, tmp_path / "run", folder_url, train={"steps": 6, "schedule": "constant"}))
    run, there = RunDir(tmp_path / "run"), Remote(folder_url, "the test")
    for step in (1, 3):
        shutil.copytree(run.checkpoints.path(6), run.checkpoints.path(step))
    there.remove([f"checkpoints/step-00000006/{CHECKSUMS}"])
    name = read_note(run.mirror.read_bytes())["run"]
    mirror = Mirror(run, ALONE, CheckpointConfig(keep_last=2), there, name)
    mirror.begin()
    mirror.finish(lambda: False)
    assert run.checkpoints.steps() == steps_at(folder_url) == [3, 6]


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
    """It goes on although the upload of the first file ends only after step 19."""
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


def test_tools_and_other_runs_read_a_url(tmp_path, tiny, url, monkeypatch, run_tool, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    short = {"steps": 6, "schedule": "constant"}
    train(mirrored(tiny, tmp_path / "run", url, train=short))
    here = load_trained(tmp_path / "run")
    for place in (url, f"{url}/checkpoints", f"{url}/checkpoints/step-00000006/"):
        there = load_trained(Path(place))  # Path makes one slash of the URL's two
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
