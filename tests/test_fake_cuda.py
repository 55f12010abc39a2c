"""What a GPU would run, found out on a fake one: graphs, kernels, bytes, precisions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fake_cuda import device

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("static", "scan", "attention")

lacks = device.missing()
pytestmark = pytest.mark.skipif(lacks is not None, reason=lacks or "")


def traced(*arguments):
    """What ``python -m benchmarks.fake_cuda`` prints, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fake_cuda", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def rows():
    found = traced("--kinds", ",".join(KINDS), "--recompute", "selective", "--configs", "gam_1b")
    usual = [row for row in found if row["compiled"] and row["precision"] == "bf16"]
    return {row["kind"]: row for row in usual}


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_one_graph(rows, kind):
    assert rows[kind]["graphs"] == 1 and rows[kind]["failure"] is None


def test_products_and_norms_are_in_the_precision_that_autocast_gives_them_on_a_gpu():
    (found,) = traced("--dtypes", "--kinds", "static", "--configs", "gam_1b")
    taken = {}
    for _, module, operator, inputs, _, _ in found["operators"]:
        taken.setdefault((module, operator), set()).update(inputs.split())
    assert taken["ffn.up", "addmm"] == taken["memory", "mm"] == {"bfloat16"}
    assert taken["norm1", "var_mean"] == taken["memory", "exp"] == {"float32"}
