"""The run's page: self-contained, escaped, and made from whatever a run has written."""

import json
import re

import pytest

from gam_scale.report import write_report


def page(folder, lines, summary=None) -> str:
    (folder / "config.json").write_text(json.dumps({"log": {"run_dir": "<b>&"}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return write_report(folder).read_text()


def line(step, **more):
    return {"step": step, "loss": 5 / step, "lr": 1e-3, "tokens_per_s": 9.0, "grad_norm": 1} | more


def test_four_plots_a_table_and_the_sample(tmp_path):
    lines = [line(1), line(2, val_loss=3.0), line(3, val_loss=2.0)]
    text = page(tmp_path, lines, {"val_perplexity": 7.389, "sample": "<script>x</script>"})
    assert text.count("<svg") == 4 and "7.39" in text
    assert "<script" not in text and "&lt;script&gt;" in text and "&lt;b&gt;&amp;" in text
    assert "currentColor" in text and "prefers-color-scheme" not in text
    links = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert not [link for link in links if "://" in link], "the page needs the network"


@pytest.mark.parametrize("lines", [[], [line(1)], [line(1, loss=None, grad_norm=None), line(2)]])
def test_short_and_broken_runs_have_a_page(tmp_path, lines):
    text = page(tmp_path, lines)
    assert "not finished" in text
    assert text.count("<svg") == (4 if lines else 0)
