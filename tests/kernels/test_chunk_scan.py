"""Test the chunk scan's Triton kernels without a GPU: their results, and that they fit one."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from closeness import worst

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def triton():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed (extra gpu)")


def test_the_kernels_are_the_loop():
    program = Path(__file__).with_name("interpreted_chunk_scan.py")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, program],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for case, found in json.loads(done.stdout.splitlines()[-1]).items():
        # float32 rounding of sums of up to 256 products, over a few successive steps.
        assert worst(found) < 1e-6, (case, found)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("size", [64, 128])
def test_no_state_leaves_the_registers(size, precision, reverse, tmp_path):
    """Compiled for an H100, it spills nothing and takes a small part of 227 kB shared memory."""
    kernel = compiled(size, precision, reverse)
    assert kernel.metadata.shared <= 48 * 1024
    (tmp_path / "kernel.ptx").write_text(kernel.asm["ptx"])
    for name in ("ptxas-blackwell", "ptxas"):  # the newer one reads Triton's PTX
        ptxas = Path(find_spec("triton").origin).parent / "backends/nvidia/bin" / name
        if not ptxas.exists():
            continue
        command = [ptxas, "-v", "-arch=sm_90a", "kernel.ptx", "-o", os.devnull]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        if done.returncode == 0:
            assert [int(n) for n in re.findall(r"(\d+) bytes spill", done.stderr)] == [0, 0]
            return
    pytest.skip("no ptxas for what Triton writes")


def compiled(size: int, precision: str, reverse: bool):
    """Compile the kernel for M x M decays as a launch on an H100 with D = 128 would."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gam_scale.kernels import chunk_scan

    tile = chunk_scan.tile_of(size, 128)
    options = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
    constants = tile | {"PRECISION": precision, "REVERSE": reverse}
    signature = dict.fromkeys(("decay", "added", "states"), "*fp32")
    signature |= dict.fromkeys(("steps", "size", "width", "added_steps"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=chunk_scan._matrices, signature=signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
