"""docs/evaluation.md: its commands but the long ones work in their order, on a small run."""

import json
import shlex

from pages import ROOT, commands, overrides
from warm import run

PAGE = ROOT / "docs" / "evaluation.md"
SMALLER = {
    "model.d_model": 32,
    "model.n_layers": 1,
    "model.gam.n_slots": 16,
    "train.steps": 4,
    "train.warmup_steps": 2,
    "train.global_batch_size": 2,
    "eval.every_steps": 2,
    "eval.max_tokens": 600,
    "eval.batch_size": 2,
    "log.sample_every": 4,
    "log.wandb": "off",
    "parallel.device": "cpu",
}
"""Settings of a smaller run than the page's, which takes a minute."""


def test_its_commands_run_in_their_order(tmp_path, prepared_set):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "quickstart").symlink_to(prepared_set)
    said = {}
    typed = [each for each in commands(PAGE) if "runs/delta" not in each.line]
    for command in typed[:-1]:  # the last one trains nine models
        python, tool, *words = shlex.split(command.line, comments=True)
        assert python == "python"
        if tool == "tools/pretrain.py":
            words += overrides(SMALLER)
        done = run([ROOT / tool, *words], cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command.line] = done.stdout
    assert len(said) == 6
    best, file = (out for line, out in said.items() if "--tasks" in line)
    for task in ("syntax", "last_word", "recall"):
        assert task in best and task in file
    answers = json.loads((tmp_path / "runs/tasks/answers.json").read_text())["checkpoints"][0]
    assert 0 <= answers["tasks"]["syntax"]["accuracy"]["mean"] <= 1
    header = (tmp_path / "runs/tasks/evaluations.csv").read_text().splitlines()[0].split(",")
    assert {"val_loss/prose", "val_loss/code", "task/syntax/accuracy_per_byte"} <= set(header)
    report = (tmp_path / "runs/tasks/report.html").read_text()
    assert "Loss by set" in report and "share of right answers" in report
