"""docs/checkpoints.md: its commands work as typed, on a small model."""

import json
import shlex

from pages import ROOT, commands
from warm import run


def test_the_commands_of_the_page_work(tmp_path, tiny):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", train={"steps": 2, "warmup_steps": 1})))
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "c")}
    asked = [each.line for each in commands(ROOT / "docs/checkpoints.md")]
    assert len(asked) == 3
    for command in asked:
        for there in ("/tmp", "data", "runs"):
            command = command.replace(f"{there}/", f"{tmp_path}/")
        python, *argv = shlex.split(command.replace("configs/quickstart.json", str(config)))
        done = run(argv, env=env, cwd=ROOT)
        assert python == "python" and done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "gam-hf/config.json").exists()
