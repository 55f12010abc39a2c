"""tools/report.py: the page of a run that has not ended."""

import json

from gam_scale.config import RunConfig
from gam_scale.strict import to_dict


def test_the_page_of_a_run_at_any_time(tool, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(to_dict(RunConfig())))
    lines = [{"step": i, "tokens": i * 64, "loss": 4.0 / i} for i in (1, 2)]
    for known in (0, 1, 2):  # the page before the first line, and anew after each
        (run / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines[:known]))
        done = tool("report", run)
        assert done.status == 0 and done.out == f"page: {run / 'report.html'}\n", done
        said = f"up to step {known}" if known else "nothing has been logged yet"
        assert said in (run / "report.html").read_text()


def test_a_folder_that_is_no_run_is_one_sentence(tool, tmp_path):
    done = tool("report", tmp_path)
    assert done.status == 2 and not list(tmp_path.iterdir())
    assert done.err == f"error: {tmp_path} has no config.json; expected a run directory\n"
