"""Marks that skip a test where the machine lacks what it needs; CI has everything, skips none.

A skipped test says what is missing: macOS has no /proc, a plain Debian has no compiler, and a CUDA
build of torch cannot take a fake device for a real one.
"""

import os

import pytest

from benchmarks.fake_cuda import device
from gam_scale.hardware.compiler import can_compile

_compiles, _why = can_compile("cpu")
_lacks = device.missing()

compiler = pytest.mark.skipif(not _compiles, reason=_why)
"""Needs torch.compile on this CPU: a C++ compiler. Without one, runs are eager and say so."""
fake_cuda = pytest.mark.skipif(_lacks is not None, reason=_lacks or "")
"""Needs a CPU that poses as a GPU (benchmarks/fake_cuda): CUDA builds of torch cannot do that."""
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
"""Needs fork, which Windows lacks: several ranks there would need another helper."""
proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks at /proc")
"""Needs Linux's /proc, where a process's threads and files are listed."""
