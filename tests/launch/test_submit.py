"""What tools/launch.py hands to submitit, without a Slurm."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gam_scale.data.set_files import cache_folder
from gam_scale.errors import UserError
from gam_scale.launch.submit import Request, find_cluster, parameters, render, run_dirs

pytest.importorskip("submitit")


@pytest.fixture
def request_for(tmp_path, tiny):
    """``request_for(n, field=value)``: a request of ``n`` configs, each with its own directory."""

    def make(count=1, **fields):
        configs = []
        for i in range(count):
            path = tmp_path / f"c{i}.json"
            path.write_text(json.dumps(tiny(tmp_path / f"run{i}")))
            configs.append(str(path))
        values = {"nodes": 1, "gpus_per_node": 2, "minutes": 60, "cluster": "slurm"} | fields
        return Request(configs=configs, overrides=values.pop("overrides", []), **values)

    return make


def test_a_cluster_is_asked_for_signal_and_requeue(request_for, monkeypatch):
    monkeypatch.setenv("GAM_SBATCH", "mem=0 exclusive=user")
    found = parameters(request_for(nodes=3, overrides=["parallel.device=auto"]), "name")
    assert found["nodes"] == 3 and found["gpus_per_node"] == found["tasks_per_node"] == 2
    assert found["slurm_signal_delay_s"] == 300
    options = {"requeue": True, "mem": "0", "exclusive": "user"}
    assert found["slurm_additional_parameters"] == options


def test_a_requeue_on_fewer_nodes_starts_a_rank_for_each_of_their_gpus(request_for):
    setup = parameters(request_for(nodes=3), "name")["slurm_setup"]
    # As Slurm sets them: the numbers of tasks are still those of the job as it was submitted.
    old = {"SLURM_NTASKS": "6", "SLURM_NPROCS": "6"}
    now = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
    script = "\n".join([*setup, "echo $SLURM_NTASKS $SLURM_NPROCS"])
    done = subprocess.run(["bash", "-c", script], env=old | now, text=True, capture_output=True)
    assert done.stdout == "4 4\n", done.stderr


def test_options_of_srun_are_the_sites_and_containers_are_refused(request_for, monkeypatch):
    monkeypatch.setenv("GAM_SRUN", "--gpu-bind=none  --mpi=none")
    found = parameters(request_for(), "name")["slurm_srun_args"]
    assert found == ["--kill-on-bad-exit=0", "--wait=180", "--gpu-bind=none", "--mpi=none"]
    for name, value in (("GAM_SRUN", "--container-image=x"), ("GAM_CONTAINER", "apptainer exec x")):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="names a container"):
            parameters(request_for(), "name")
        monkeypatch.setenv(name, "")


def test_copies_of_remote_sets_go_to_the_nodes_own_disk(request_for, tmp_path, monkeypatch):
    setup = parameters(request_for(), "name")["slurm_setup"]
    sizes = {"SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_CPUS_PER_TASK": "1"}

    def scratch(**env):
        script = "\n".join([*setup, "echo $GAM_SCRATCH"])
        done = subprocess.run(
            ["bash", "-c", script], env=sizes | env, text=True, capture_output=True
        )
        return done.stdout.strip()

    assert (scratch(), scratch(TMPDIR="/local")) == ("/tmp", "/local")
    assert scratch(TMPDIR="/local", GAM_SCRATCH="/nvme") == "/nvme"
    monkeypatch.delenv("GAM_SCRATCH", raising=False)
    assert cache_folder("", tmp_path) == tmp_path
    monkeypatch.setenv("GAM_SCRATCH", "/nvme")
    assert cache_folder("", tmp_path) == Path(f"/nvme/gam-cache-{os.getuid()}")
    assert cache_folder("mine", tmp_path) == Path("mine")


def test_no_gpus_are_asked_for_on_cpus(request_for):
    assert "gpus_per_node" not in parameters(request_for(), "name")
    assert parameters(request_for(cluster="local"), "name")["gpus_per_node"] == 0


def test_one_directory_per_run(request_for, tmp_path):
    request = request_for(2)
    assert run_dirs(request) == [tmp_path / "run0", tmp_path / "run1"]
    same = [f"log.run_dir={tmp_path / 'one'}"]
    with pytest.raises(UserError, match="both have log.run_dir"):
        run_dirs(request_for(2, overrides=same))


def test_ranks_that_a_config_cannot_be_divided_over_are_not_handed_in(request_for):
    request = request_for(nodes=1, gpus_per_node=3, overrides=["parallel.context=2"])
    with pytest.raises(UserError, match="context is 2, which does not divide the 3 ranks"):
        run_dirs(request)


def test_one_machine_is_one_node(request_for):
    with pytest.raises(UserError, match="--nodes is 2 without Slurm"):
        run_dirs(request_for(nodes=2, cluster="local"))


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("exclusive", {"exclusive": True}),
        ("--exclusive --mem=0", {"exclusive": True, "mem": "0"}),
        ("constraint=a=b", {"constraint": "a=b"}),
    ],
)
def test_gam_sbatch_takes_options_with_and_without_a_value(request_for, monkeypatch, said, asked):
    monkeypatch.setenv("GAM_SBATCH", said)
    found = parameters(request_for(), "name")["slurm_additional_parameters"]
    assert found == {"requeue": True} | asked, f"GAM_SBATCH={said} became {found}"


EVIL = "x\n#SBATCH --partition=urgent"


@pytest.mark.parametrize(
    ("env", "fields", "said"),
    [
        ({"GAM_SBATCH": "=0"}, {}, "GAM_SBATCH has =0"),
        ({"GAM_SBATCH": "mem=a\x07b"}, {}, "GAM_SBATCH's mem is"),
        ({"GAM_MODULES": EVIL}, {}, "GAM_MODULES has the line #SBATCH"),
        ({}, {"partition": EVIL}, "--partition is"),
        ({}, {"overrides": [f"log.run_dir=runs/{EVIL}"]}, "log.run_dir is"),
    ],
)
def test_no_value_writes_a_line_of_its_own_into_the_script(
    request_for, monkeypatch, env, fields, said
):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        render(request_for(**fields))
    assert "\n" not in str(caught.value)


def test_a_rank_has_its_cores_and_not_one(request_for):
    """From Slurm 22.05 on, srun does not take --cpus-per-task from sbatch."""
    found = parameters(request_for(cpus_per_task=6), "name")
    assert found["cpus_per_task"] == 6
    script = "\n".join([*found["slurm_setup"], "echo $SRUN_CPUS_PER_TASK"])
    env = {"SLURM_CPUS_PER_TASK": "6", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    done = subprocess.run(["bash", "-c", script], env=env, text=True, capture_output=True)
    assert done.stdout == "6\n", f"srun starts ranks of one core: {done}"


def test_no_slurm_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_cluster() == ("local", "no sbatch here")
