"""The job scripts without a Slurm: valid shell, and one sentence where they cannot run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
JOBS = [path for path in SCRIPTS if "#SBATCH" in path.read_text()]


def run(*words, **env) -> subprocess.CompletedProcess[str]:
    """Run a command outside of any job, unless ``env`` says otherwise."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "GAM_"))}
    return subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env=clean | {k: str(v) for k, v in env.items()},
        text=True,
        capture_output=True,
    )


@pytest.fixture
def job(tmp_path):
    """``job(**env)``: run gam_1b.sh as slurmd does, which gives each job a copy of its script."""

    def start(**env) -> subprocess.CompletedProcess[str]:
        script = shutil.copy(ROOT / "slurm" / "gam_1b.sh", tmp_path / "slurm_script")
        return run("/bin/bash", script, **{"SLURM_JOB_ID": 1, "GAM_ROOT": ROOT} | env)

    return start


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_is_sound_shell(script):
    done = run("bash", "-n", script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_it_requeues_and_is_warned_before_its_time_is_up(script):
    text = script.read_text()
    assert "#SBATCH --requeue" in text and "#SBATCH --signal=USR1@" in text


def test_what_a_launcher_left_is_forgotten_by_both_ways_to_submit():
    job = pytest.importorskip("gam_scale.launch.job", exc_type=ImportError)
    script = (ROOT / "slurm" / "common.sh").read_text().replace("\\\n", " ")
    unset = " ".join(re.findall(r"^unset (.*)", script, re.MULTILINE)).split()
    assert {*unset, "MASTER_ADDR"} == {*job.ELSEWHERE}, "one forgets what the other does not"


def test_what_both_ways_to_submit_record_of_a_hang_is_the_same(tmp_path):
    flight = pytest.importorskip("gam_scale.parallel.flight", exc_type=ImportError)
    script = (ROOT / "slurm" / "common.sh").read_text()
    exports = re.findall(r"^export (?:TORCH_|PYTORCH_).*", script, re.MULTILINE)
    assert len(exports) == 4
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TORCH_", "PYTORCH_"))}

    def exported(**env):
        shell = "\n".join([f"job={tmp_path}", *exports, "env"])
        done = subprocess.run(
            ["bash", "-c", shell], env=clean | env, text=True, capture_output=True
        )
        return dict(line.partition("=")[::2] for line in done.stdout.splitlines())

    ours = flight.settings(f"{tmp_path}/flight_rank_")
    assert {name: exported()[name] for name in ours} == ours
    mine = {name: "mine" for name in ours}
    assert {name: exported(**mine)[name] for name in ours} == mine
    former = exported(PYTORCH_CUDA_ALLOC_CONF="mine")
    assert former["PYTORCH_ALLOC_CONF"] == "mine", "the older name of it"


def test_without_slurm_it_says_so(tmp_path):
    for name in ("bash", "dirname", "basename"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    done = run("/bin/bash", "slurm/gam_1b.sh", PATH=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: no sbatch here"), done.stderr


@pytest.mark.parametrize("name", [path.name for path in JOBS])
def test_called_by_itself_it_submits_itself_also_inside_another_job(tmp_path, name):
    """A terminal of salloc's, or a notebook's, has the variables of its own job."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\necho "$PWD: $*"\n')
    sbatch.chmod(0o755)
    inside = {"SLURM_JOB_ID": 7, "SLURM_SUBMIT_DIR": tmp_path}
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = run(ROOT / "slurm" / name, "--nodes=2", PATH=path, **inside)
    assert done.stdout == f"{ROOT}: --nodes=2 slurm/{name}\n", done.stderr


def test_modules_may_use_variables_that_are_not_set(job):
    done = job(GAM_MODULES='echo "with $NOT_SET_ANYWHERE."', GAM_ARGS="--set train.lr=fast")
    assert done.stdout == "with .\n" and "train.lr" in done.stderr, done.stderr


def test_a_mistake_in_the_config_ends_the_job_before_its_ranks_start(job):
    done = job(GAM_ARGS="--set train.lr=fast")
    assert done.returncode == 2 and "train.lr" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"GAM_ARGS": "--set train.steps=9\n--set train.lr=fast"}, "train.lr"),
        ({"GAM_ARGS": "--config configs/ctx16k.json"}, "GAM_ARGS has --config configs/ctx16k.json"),
        ({"GAM_ARGS": "--config=configs/ctx16k.json"}, "GAM_ARGS has --config configs/ctx16k.json"),
        ({"GAM_ARGS": "--stopped-status 0"}, "GAM_ARGS has --stopped-status"),
        ({"GAM_ARGS": "--help"}, "GAM_ARGS has --help"),
        ({"GAM_ARGS": '--set data.sets=[{"path": "x"}]'}, "GAM_ARGS has"),
        ({"CONFIG": "configs/gam_1b.json\n"}, "CONFIG is"),
        ({"CONFIG": "configs/my config.json"}, "configs/my config.json: no such file"),
        ({"GAM_ARGS": "--set log.run_dir=runs/\x07"}, "log.run_dir is"),
    ],
)
def test_what_a_script_is_given_is_taken_whole_or_refused(job, env, said):
    done = job(**env)
    assert done.returncode == 2, f"taken in another meaning: {env}: {done}"
    assert done.stderr.startswith("error: ") and said in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("script", JOBS, ids=lambda path: path.name)
def test_it_asks_for_more_than_one_core_a_rank(script):
    assert "#SBATCH --cpus-per-task=8" in script.read_text(), "a rank has one core"
