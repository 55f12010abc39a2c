"""What some tests need and a machine may lack, as marks; CI's has all of it, and skips none.

Elsewhere a skipped test says what is lacking: macOS has no /proc, a plain Debian no compiler, and a
build of torch for CUDA cannot take a fake device for a real one.
"""

import os

import pytest

from benchmarks.fake_cuda import device
from gam_scale.hardware.compiler import can_compile

_compiles, _why = can_compile("cpu")
_lacks = device.missing()

compiler = pytest.mark.skipif(not _compiles, reason=_why)
"""torch.compile on this CPU, which needs a C++ compiler; without one, runs are eager and say so."""
fake_cuda = pytest.mark.skipif(_lacks is not None, reason=_lacks or "")
"""A CPU taken for a GPU (benchmarks/fake_cuda), which builds of torch for CUDA cannot do."""
fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
"""Windows has none: processes of several ranks there would need another helper."""
proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="looks at /proc")
"""What a process's threads and files are is read there, on Linux alone."""
