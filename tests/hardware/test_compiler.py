"""What torch.compile needs, with the parts of other machines simulated."""

import sys

import pytest
import torch

from gam_scale.hardware import compiler
from gam_scale.hardware.compiler import can_compile


def script(folder, name: str, exit_code: int) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)


@pytest.fixture
def toolchain(monkeypatch, tmp_path):
    """The only folder of PATH, on Linux, which has no programs but a Python.h."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(compiler, "_python_header", lambda: tmp_path / "Python.h")
    return tmp_path


def test_cpu_without_a_compiler(toolchain, monkeypatch):
    assert can_compile("cpu") == (False, "no C++ compiler found (g++ or clang++)")
    script(toolchain, "clang++", 0)  # Inductor would not look for it by itself
    assert can_compile("cpu") == (
        False,
        "no C++ compiler found (g++; set CXX=clang++ to use that one)",
    )
    monkeypatch.setenv("CXX", "icpx")
    assert can_compile("cpu") == (False, "no C++ compiler found (CXX is icpx)")


def test_cpu_with_a_compiler(toolchain, monkeypatch):
    script(toolchain, "g++", 0)
    assert can_compile("cpu") == (True, "g++")
    script(toolchain, "g++", 1)
    assert can_compile("cpu") == (False, "g++ cannot build a C++ program with OpenMP")
    script(toolchain, "clang++", 0)
    monkeypatch.setenv("CXX", "clang++")
    assert can_compile("cpu") == (True, "clang++")
    (toolchain / "Python.h").unlink()
    assert can_compile("cpu") == (False, "no Python.h found (python3-dev)")


def test_gpu_toolchains(toolchain, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    assert can_compile("cuda") == (False, "triton is not installed")
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: object())
    assert can_compile("cuda") == (False, "no C compiler found (gcc or clang)")
    script(toolchain, "gcc", 0)
    assert can_compile("cuda") == (True, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    assert can_compile("cuda")[1] == "triton needs compute capability 7.0, this GPU has 6.1"
