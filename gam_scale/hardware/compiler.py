"""Check whether torch.compile has the compilers that it needs on this machine."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch


def can_compile(device: torch.device | str) -> tuple[bool, str]:
    """Return whether torch.compile has what it needs here, and what it has or lacks in a phrase."""
    if torch.device(device).type == "mps":
        return False, "torch.compile for Apple's GPUs is untried here"
    if torch.device(device).type == "cuda":
        return _can_compile_triton(torch.cuda.get_device_capability(device))
    return _can_compile_cpp()


def _can_compile_triton(capability: tuple[int, int]) -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if capability < (7, 0):
        return (
            False,
            f"triton needs compute capability 7.0, this GPU has {capability[0]}.{capability[1]}",
        )
    # Triton builds each kernel's launcher as a C extension of Python.
    if not any(shutil.which(cc) for cc in (os.environ.get("CC", "gcc"), "clang")):
        return False, "no C compiler found (gcc or clang)"
    if not _python_header().exists():
        return False, "no Python.h found (python3-dev)"
    return True, "triton"


def _can_compile_cpp() -> tuple[bool, str]:
    """Try the compiler that Inductor calls, $CXX or the platform's default, on a small program."""
    default, other = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    compiler = os.environ.get("CXX", default)
    if not shutil.which(compiler):
        if "CXX" in os.environ:
            return False, f"no C++ compiler found (CXX is {compiler})"
        if shutil.which(other):
            return False, f"no C++ compiler found ({default}; set CXX={other} to use that one)"
        return False, f"no C++ compiler found ({default} or {other})"
    if not _python_header().exists():
        return False, "no Python.h found (python3-dev)"
    program = "#include <Python.h>\n#include <omp.h>\nint f() { return omp_get_max_threads(); }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(program)
        flags = ["-fopenmp", "-fPIC", "-shared", f"-I{_python_header().parent}"]
        command = [compiler, *flags, str(source), "-o", str(source.with_suffix(".so"))]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            return False, f"{compiler} cannot build a C++ program with OpenMP"
    return True, compiler


def _python_header() -> Path:
    return Path(sysconfig.get_path("include")) / "Python.h"
