"""What a GPU would run, found out on a fake one: graphs, kernels, bytes, precisions."""

import json
import subprocess
import sys
from pathlib import Path

import needs
import pytest

from gam_scale.plan.gpu_blocks import rows

ROOT = Path(__file__).resolve().parent.parent
KINDS = ("delta",)
WITHIN = 0.05  # relative: other versions of torch's parts fuse a little differently

pytestmark = needs.fake_cuda


def traced(*arguments):
    """Return what ``python -m benchmarks.fake_cuda`` prints, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fake_cuda", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def described(row):
    """Return what a row traced, without the results."""
    keys = ("config", "kind", "recompute", "compiled", "precision", "implementation")
    return tuple(row[key] for key in keys)


def assert_as_known(found):
    known = {described(row): row for row in rows()}
    assert found, "nothing was traced"
    for row in found:
        segmented = row["config"] == "ctx16k" and row["kind"] not in ("attention", "mamba")
        graphs = (2 if segmented else 1) if row["compiled"] else 0
        assert row["failure"] is None and row["graphs"] == graphs, row
        for figure in ("bytes", "kernels", "kept", "peak"):
            expected = known[described(row)][figure]
            assert row[figure] == pytest.approx(expected, rel=WITHIN), (figure, described(row))


def test_blocks_are_one_graph_and_cost_what_the_table_says():
    """With and without a kernel; ``python -m benchmarks.fake_cuda`` remakes the table."""
    chosen = ("--kinds", ",".join(KINDS), "--recompute", "selective", "--configs", "gam_1b")
    assert_as_known(traced(*chosen))


@pytest.mark.parametrize(("asked", "taken"), [("cuda", False), ("cuda:0", True)])
def test_a_device_is_set_by_its_number_as_on_a_real_gpu(asked, taken):
    program = "from benchmarks.fake_cuda import device; device.activate(); import torch; "
    command = [sys.executable, "-c", f"{program}torch.cuda.set_device({asked!r})"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode == 0) == taken, run.stderr
    assert taken or "ValueError: Expected a torch.device with a specified index" in run.stderr


@pytest.mark.gpu_full
@pytest.mark.parametrize("config", ["gam_1b", "ctx16k"])
def test_all_blocks_are_as_few_graphs_as_can_be_and_cost_what_the_table_says(config):
    assert_as_known(traced("--configs", config))


def test_the_table_says_that_no_block_is_cut():
    for row in rows():
        assert row["failure"] is None and bool(row["graphs"]) == row["compiled"], described(row)


@pytest.fixture(scope="module")
def operators():
    """Of a delta block: (is in the backward pass, module, operator) -> dtypes of its inputs."""
    (found,) = traced("--dtypes", "--kinds", "delta", "--configs", "gam_1b")
    taken = {}
    for backward, module, operator, inputs, _, _ in found["operators"]:
        taken.setdefault((backward, module, operator), set()).update(inputs.split())
    return taken


def test_autocast_is_that_of_a_gpu(operators):
    assert operators[False, "ffn.up", "addmm"] == {"bfloat16"}
    assert operators[False, "norm1", "var_mean"] == {"float32"}


@pytest.mark.parametrize("backward", [False, True])
def test_a_memory_multiplies_in_fp32_or_finer_in_both_passes(operators, backward):
    products = {
        (module, operator): dtypes
        for (of_backward, module, operator), dtypes in operators.items()
        if of_backward == backward and "mm" in operator and module.startswith("memory")
    }
    linear = ("memory.qkv", "memory.out")
    exact = {key: dtypes for key, dtypes in products.items() if key[0] not in linear}
    # The heads' products, and the sums of their decays.
    assert exact.pop(("memory", "bmm")) == {"float32", "float64"}, products
    assert exact and all(dtypes == {"float32"} for dtypes in exact.values()), products
    assert all(products[key] == {"bfloat16"} for key in products if key[0] in linear), products
