"""The start of a run directory: it is made or begun anew, and no kill leaves half of either."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from whole_runs import assert_equal_runs, killed_after, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.parallel.world import World
from gam_scale.run.directory import RunDir
from gam_scale.run.restarts import read_restarts, this_job
from gam_scale.run.settings import differences
from gam_scale.strict import from_dict, to_dict
from gam_scale.train.health import Health
from gam_scale.train.preflight import check_rank

CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir")
"""Functions of ``os`` that change a directory; a run directory changes by no others."""


class Death(BaseException):
    """Stands for SIGKILL: no ``except Exception`` handles it."""


def is_killed_at(call: int, action: Callable[[], object]) -> bool:
    """Do ``action``, killed right before its ``call``-th change of a directory.

    Returns whether it was killed; if not, it made fewer changes.
    """
    done = 0

    def wrap(original):
        def wrapped(*args, **kwargs):
            nonlocal done
            done += 1
            if done >= call:
                raise Death
            return original(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, wrap(getattr(os, name)))
        try:
            action()
        except Death:
            return True
    return False


@pytest.fixture
def config(tiny, tmp_path):
    return from_dict(RunConfig, tiny(tmp_path / "run"))


@pytest.fixture
def job(monkeypatch):
    """Return ``job(name, restarts)``, which makes this process part of that Slurm job."""

    def be(name, restarts):
        monkeypatch.setenv("SLURM_JOB_ID", name)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    return be


def an_old_run(path, config):
    """Make the directory of a run with a checkpoint, as another job has left it."""
    run = RunDir(path)
    run.open(config, fresh=False)
    run.checkpoints.path(6).mkdir()
    (run.checkpoints.path(6) / "old").write_text("old")
    for name in ("metrics.jsonl", "summary.json", "starts.json"):
        (path / name).write_text("old")
    run.restarts.write_text('{"job": "1", "step": 6}')
    (path / "jobs").mkdir()
    (path / "jobs" / "rank0.log").write_text("kept")
    return run


def names(path):
    return sorted(item.name for item in path.iterdir())


NEW = ["checkpoints", "config.json", "logs"]


def test_a_kill_at_any_instant_of_the_first_start_blocks_nothing(tmp_path, config):
    for call in range(1, 50):
        path = tmp_path / f"run{call}"
        if not is_killed_at(call, partial(RunDir(path).open, config, fresh=False)):
            break
        for fresh in (False, True):
            try:
                RunDir(path).open(config, fresh=fresh)
            except UserError as error:
                pytest.fail(f"first start: killed at change {call}, it blocks the next: {error}")
        assert names(path) == [*NEW, "restarts.json"]
    assert call > 4, "nothing was killed"


def test_what_older_versions_left_of_a_first_start_blocks_nothing(tmp_path, config):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / ".config.json.77.tmp").write_text("{")
    RunDir(tmp_path / "run").open(config, fresh=False)
    assert names(tmp_path / "run") == NEW


@pytest.mark.parametrize("name", ["thesis.txt", "logs/thesis.txt", ".thesis.tmp"])
def test_a_users_files_are_no_start_of_ours(tmp_path, config, name):
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / name).write_text("precious")
    with pytest.raises(UserError, match="not a run directory"):
        RunDir(tmp_path / "run").open(config, fresh=True)
    assert (tmp_path / "run" / name).read_text() == "precious"


def test_fresh_is_not_forgotten_whenever_the_job_is_killed_and_requeued(tmp_path, config, job):
    """The job is killed before each of its changes of a directory in turn."""
    for call in range(1, 100):
        path = tmp_path / f"run{call}"
        job("1", 0)
        run = an_old_run(path, config)
        job("2", 0)
        if not is_killed_at(call, partial(run.open, config, fresh=True)):
            break
        job("2", 1)
        run.open(config, fresh=True)
        left = [item for item in path.rglob("*") if item.is_file() and item.read_text() == "old"]
        assert not left, f"--fresh: forgotten when killed at change {call} and requeued: {left}"
        assert (path / "jobs" / "rank0.log").read_text() == "kept"
        assert names(path) == [*NEW[:2], "jobs", "logs", "restarts.json"]
    assert call > 13, "nothing was killed"


def test_a_kill_of_fresh_leaves_a_run_that_any_start_takes(tmp_path, config):
    for call in range(1, 100):
        path = tmp_path / f"run{call}"
        run = an_old_run(path, config)
        if not is_killed_at(call, partial(run.open, config, fresh=True)):
            break
        steps = run.checkpoints.steps()
        whole = (path / "metrics.jsonl").exists() and (path / "starts.json").exists()
        assert whole or not steps, f"--fresh: killed at change {call}, half of the run is left"
        run.open(config, fresh=False)


def test_a_requeued_job_goes_on_with_what_it_began(tmp_path, tiny, curve, job):
    sure = {"checkpoint": {"background": False}}
    old = tiny(tmp_path / "run", train={"seed": 5, "steps": 8}, **sure)
    new, whole = tiny(tmp_path / "run", **sure), tiny(tmp_path / "whole")
    job("1", 0)
    train(old)
    train(whole)
    job("2", 0)
    with killed_after(7):
        train(new, fresh=True)
    store = CheckpointStore(tmp_path / "run" / "checkpoints")
    assert store.steps() == [6]
    job("2", 1)
    with killed_after(13):
        train(new, fresh=True)
    assert 12 in store.steps(), "--fresh: a requeued job removed what it had begun itself"
    job("2", 2)
    train(new, fresh=True)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", curve)
    assert read_restarts(tmp_path / "run" / "restarts.json").total == 2
    job("3", 0)
    train(new | {"train": old["train"]}, fresh=True)
    assert store.steps()[-1] == 8, "--fresh: another job's first start goes on with an old run"


def test_jobs_are_told_apart():
    slurm, torchrun = {"SLURM_JOB_ID": "7"}, {"TORCHELASTIC_RUN_ID": "x"}
    assert this_job({}) == "" and this_job(slurm) == "7" and this_job(slurm | torchrun) == "7 x"
    assert str(os.getppid()) in this_job({"TORCHELASTIC_RUN_ID": "none"})
    requeued = slurm | {"SLURM_RESTART_COUNT": "1"}
    assert this_job(requeued | torchrun) == "7", "requeue: the name is torchrun's, which is another"


def test_a_requeue_under_torchrun_keeps_what_the_job_began(tmp_path, config, job, monkeypatch):
    """Slurm's id of the job stays the same; each torchrun has an id of its own."""

    def torchrun(name, restarts):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    run = an_old_run(tmp_path / "run", config)
    job("7", 0)
    torchrun("first", 0)
    run.open(config, fresh=True)
    run.checkpoints.path(3).mkdir()
    for requeues, name, restarts in ((1, "second", 0), (1, "second", 1), (2, "third", 0)):
        job("7", requeues)
        torchrun(name, restarts)
        run.open(config, fresh=True)
        assert run.checkpoints.steps() == [3], "--fresh: a requeue removed what its job had begun"
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    torchrun("fourth", 1)  # in the same allocation; killed once, before it removed anything
    run.open(config, fresh=True)
    assert run.checkpoints.steps() == [], "--fresh: another torchrun's run is taken for its own"


@pytest.mark.parametrize("source", ["continue_from", "branch_of", "init_from"])
def test_fresh_does_not_remove_what_it_is_to_begin_with(tmp_path, tiny, source):
    train(tiny(tmp_path / "run", train={"steps": 2, "warmup_steps": 1}))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for path in ("run", "link", "run/checkpoints/step-00000002"):
        changed = tiny(tmp_path / "run", checkpoint={source: str(tmp_path / path)})
        with pytest.raises(UserError, match=f"checkpoint.{source} .* is in log.run_dir"):
            train(changed, fresh=True)
        steps = CheckpointStore(tmp_path / "run" / "checkpoints").steps()
        assert steps == [2], "--fresh: it removed the very run that it was to begin with"


def test_fresh_that_cannot_remove_a_part_removes_nothing(tmp_path, config, monkeypatch):
    run = an_old_run(tmp_path / "run", config)
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    rename = os.rename

    def refuse(source, target):
        if os.path.basename(source) == "starts.json":
            raise PermissionError(13, "Permission denied", str(source))
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="was left whole"):
        patch.setattr(os, "rename", refuse)
        run.open(config, fresh=True)
    after = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    assert after == before, "--fresh: it removed a part of the run and stopped"


def test_what_kills_left_behind_is_removed_by_the_next_start(tmp_path, config):
    run = an_old_run(tmp_path / "run", config)
    for leftover in (".metrics.jsonl.7.tmp", "checkpoints/.best.json.77.tmp"):
        (run.path / leftover).write_text("half")
    for folder in ("checkpoints/.step-00000009.partial", ".removed-x/checkpoints"):
        (run.path / folder).mkdir(parents=True)
        (run.path / folder / "file").write_text("half")
    (run.path / ".mine.tmp").write_text("a user's")
    run.open(config, fresh=False)
    left = [p.name for p in run.path.rglob(".*")]
    assert left == [".mine.tmp"], f"leftovers: a start leaves {left}"
    assert run.checkpoints.steps() == [6]


def test_what_is_written_for_a_moment_is_named_as_a_leftover(tmp_path, config, monkeypatch):
    """A kill leaves preflight's probe and the unrenamed ranks.json; the next start removes both."""
    alone, run = World(0, 1, 0, 1, torch.device("cpu")), RunDir(tmp_path / "run")
    run.open(config, fresh=False)
    before = set(run.path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(os, "replace", lambda *_: None)
        check_rank(alone, run.checkpoints.folder, 0)
        Health(alone, run.ranks).line(1, 0.0)
    left = set(run.path.rglob("*")) - before
    assert len(left) == 2, "nothing was left"
    run.open(config, fresh=False)
    assert not any(file.exists() for file in left), f"leftovers: a start leaves some of {left}"


def test_a_name_beside_a_checkpoint_is_left_alone(tmp_path, tiny):
    run = tmp_path / "run"
    with killed_after(8):
        train(tiny(run, checkpoint={"background": False}))
    folder = run / "checkpoints"
    others = ["step-00000006.bak", "step-7", "step-x (copy)", "step-", "step-000000006"]
    for name in others:
        shutil.copytree(folder / "step-00000006", folder / name)
    (folder / "step-00000999").write_text("a file")
    others.append("step-00000999")
    assert CheckpointStore(folder).steps() == [6], "checkpoints: another name is taken for one"
    train(tiny(run, checkpoint={"keep_last": 1}))
    assert all((folder / name).exists() for name in others)
    assert CheckpointStore(folder).latest() == folder / "step-00000020"


def test_damaged_checkpoints_of_one_step_are_all_set_aside(tmp_path):
    store = CheckpointStore(tmp_path)
    for _ in range(3):
        store.path(5).mkdir()
        (store.path(5) / "file").write_text("damaged")
        store.set_aside(5, "damaged")
    assert names(tmp_path) == [f"damaged-step-00000005{end}" for end in ("", ".2", ".3")]


def test_two_kinds_of_layer_differ_in_their_kind():
    """The kind is named first, and not a setting that only one of them has."""
    was, now = (
        from_dict(RunConfig, {"model": {"layers": [{"kind": kind}]}})
        for kind in ("delta", "attention")
    )
    first = next(iter(differences(to_dict(was), now).items()))
    assert first == ("model.layers[0].kind", ("delta", "attention"))
