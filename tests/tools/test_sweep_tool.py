"""tools/sweep.py in this process: what it says on the console."""

import json

from scaling.sweeps import SMALL, SPEC


def test_why_a_run_failed_stands_on_the_console(tmp_path, tool) -> None:
    spec = tmp_path / "sweep.json"
    spec.write_text(json.dumps(SPEC | SMALL | {"data": str(tmp_path / "missing")}))
    done = tool("sweep", "run", "--sweep", spec, "--out", tmp_path / "runs")
    said = done.out.splitlines()
    assert done.status == 1, f"a failed run is no failure: {done}"
    (reason,) = [line for line in said if line.startswith("  status 2, ")]
    assert reason.startswith("  status 2, error: ") and "missing" in reason, f"no reason: {said}"
    assert "2 runs are unfinished; the same command goes on with them" in said[-1]
