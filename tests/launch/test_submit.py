"""What tools/launch.py hands to submitit, without a Slurm."""

import json
import shutil
import subprocess

import pytest

from gam_scale.errors import UserError
from gam_scale.launch.submit import Request, find_cluster, parameters, run_dirs

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
    # As Slurm sets them: how many tasks there are is of the job as it was submitted.
    old = {"SLURM_NTASKS": "6", "SLURM_NPROCS": "6"}
    now = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "2"}
    script = "\n".join([*setup, "echo $SLURM_NTASKS $SLURM_NPROCS"])
    done = subprocess.run(["bash", "-c", script], env=old | now, text=True, capture_output=True)
    assert done.stdout == "4 4\n", done.stderr


def test_no_gpus_are_asked_for_on_cpus(request_for):
    assert "gpus_per_node" not in parameters(request_for(), "name")
    assert parameters(request_for(cluster="local"), "name")["gpus_per_node"] == 0


def test_one_directory_per_run(request_for, tmp_path):
    request = request_for(2)
    assert run_dirs(request) == [tmp_path / "run0", tmp_path / "run1"]
    same = [f"log.run_dir={tmp_path / 'one'}"]
    with pytest.raises(UserError, match="both have log.run_dir"):
        run_dirs(request_for(2, overrides=same))


def test_one_machine_is_one_node(request_for):
    with pytest.raises(UserError, match="--nodes is 2 without Slurm"):
        run_dirs(request_for(nodes=2, cluster="local"))


def test_no_slurm_is_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert find_cluster() == ("local", "no sbatch here")
