"""docs/whole_path.md from start to end, on tiny models: its code and commands as they stand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import QUICK, ROOT, blocks, commands, type_in

PAGE = ROOT / "docs" / "whole_path.md"
SMALL = QUICK | {"model.d_model": 64, "data.seq_len": 64, "train.steps": 12}
STACKS = {
    "gam_delta": '["gam_delta"]',
    "hybrid": '["gam_delta", "gam_delta", "gam_delta", "attention"]',
}


@pytest.mark.lm_eval
@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_from_a_text_to_lm_eval(layers, tmp_path, run_tool, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is missing; the extra lm-eval has it")
    assert f"`--set 'model.layers={layers}'`" in PAGE.read_text() or layers == STACKS["gam_delta"]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    tokenizer, adapter, task = blocks(PAGE, "python")
    exec(tokenizer.replace('"*.py"', '"[a-c]*.py"').replace("4096", "600"), {})
    prepare, train, export, *measure = (command.words for command in commands(PAGE))
    settings = SMALL | {"model.layers": layers}
    instead = {"python-stdlib": source_of_some_files(tmp_path)}
    for words in (prepare, train, export):
        type_in(run_tool, words, settings, instead)
    learned: dict = {}
    exec(adapter, learned)
    assert learned["losses"][-1] < learned["losses"][0] - 0.1
    exec(task, {})
    before, after = (bits_per_byte(words) for words in measure)
    assert 0 < after < before - 0.02


def source_of_some_files(folder):
    """Write this project's sources as rows, which take seconds in place of python-stdlib."""
    path = folder / "source.jsonl"
    texts = [file.read_text() for file in sorted((ROOT / "gam_scale").rglob("*.py"))]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def bits_per_byte(words):
    """Run a command of the harness, and return the bits per byte that it finds."""
    program, *options = words
    assert program == "lm_eval"
    here = {"HF_HUB_OFFLINE": "1", "HF_HOME": "home", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", *options]
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = Path(options[-1]).glob("*/results*.json")
    return json.loads(file.read_text())["results"]["mine"]["bits_per_byte,none"]
