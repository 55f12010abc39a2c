"""tools/launch.py in this process: what it prints, and what it refuses."""

import json
import shutil

import pytest

pytest.importorskip("submitit")
EVIL = "x\n#SBATCH --partition=urgent"


def test_a_line_break_in_a_configs_name_is_refused(tmp_path, tiny, tool):
    config = tmp_path / f"{EVIL}.json"
    config.write_text(json.dumps(tiny(tmp_path / "run")))
    done = tool("launch", "--config", config, "--dry-run")
    assert done.status == 2 and "the config's name is" in done.err, f"a line of its own: {done}"


def test_the_script_is_printed_where_there_is_no_slurm(tmp_path, tiny, tool, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    config = tmp_path / "my config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", parallel={"device": "auto"})))
    done = tool("launch", "--config", config, "--nodes", 2, "--cpus-per-task", 6, "--dry-run")
    assert done.status == 0, f"--dry-run needs Slurm: {done.err}"
    assert done.out.startswith("#!/bin/bash\n") and "#SBATCH --nodes=2\n" in done.out
    assert "#SBATCH --job-name='my config'\n#SBATCH --nodes" in done.out.replace(
        "#SBATCH --gpus-per-node=1\n", ""
    )
    assert not (tmp_path / "run").exists(), "--dry-run left something behind"


def test_following_what_nobody_started_ends_at_once(tmp_path, tool):
    done = tool("launch", "--follow", tmp_path / "typo")
    assert done.status == 2, f"it waits for a run that never comes: {done}"
    assert done.err.startswith(f"error: {tmp_path / 'typo'} has no run, and no job"), done.err
