"""The other job scripts of slurm/ on a real Slurm, unchanged but for sizes."""

import shutil

import pytest
from slurm.jobs import ROOT

from gam_scale.run.metrics_file import read_metrics
from gam_scale.run.restarts import read_restarts
from gam_scale.strict import read_json

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(("script", "nodes"), [("single_node.sh", 1), ("ctx16k.sh", 2)])
def test_it_trains(start, script, nodes):
    job = start(script=script, nodes=nodes, settings="train.steps=12")
    assert job.finish() == "COMPLETED", job.said()
    assert max(job.losses()) == 12 and len(job.nodes) == nodes, job.said()
    assert "2 core(s) a rank" in job.output.read_text(), job.said()


def test_a_sweep_trains_a_run_per_line_through_a_requeue_of_each(slurm, start, tmp_path):
    """One task has the array's own number as its job's, and is requeued as the others are."""
    lines = tmp_path / "sweep.txt"
    lines.write_text("--set train.seed=1\n--set train.seed=2\n")
    env = {"SWEEP": str(lines)}
    job = start("--array=1-2", script="sweep.sh", nodes=1, env=env)
    folder = ROOT / "runs" / f"sweep-{job.id}"
    runs = [folder / "1", folder / "2"]
    try:
        job.wait(lambda: all(read_metrics(run / "metrics.jsonl") for run in runs), "both begun")
        slurm.run("scancel", "--signal=USR1", job.id)
        job.wait(lambda: all((run / "summary.json").exists() for run in runs), "both runs")
        seeds = [read_json(run / "config.json")["train"]["seed"] for run in runs]
        restarts = [read_restarts(run / "restarts.json").total for run in runs]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert seeds == [1, 2] and restarts == [1, 1]
