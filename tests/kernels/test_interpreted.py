"""Test flash-linear-attention's real kernels, both passes, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from closeness import worst

ROOT = Path(__file__).resolve().parents[2]


KINDS = ["delta", "slot", "kda", "gdn2"]


def test_the_real_kernels_on_packed_documents(tmp_path):
    for package in ("triton", "fla"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (extra gpu)")
    program = Path(__file__).with_name("interpreted.py")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, program, ",".join(KINDS), tmp_path],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    by_kind = json.loads(done.stdout.splitlines()[-1])
    assert list(by_kind) == KINDS
    for kind, differences in by_kind.items():
        assert {"y", "final", "q", "k", "v", "log_decay", "initial"} <= set(differences)
        # The interpreter multiplies in true float32: about a hundred roundings add up.
        assert worst(differences.values()) < 1e-5, (kind, differences)
