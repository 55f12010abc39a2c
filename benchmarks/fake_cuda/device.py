"""Makes torch believe in an H100, for good: only in a process that does nothing else.

:func:`activate` must be called first of all, since torch asks whether there is a device only once,
when it is imported.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=80 << 30,
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    clock_rate=1_980_000,
    memory_clock_rate=2_619_000,
    memory_bus_width=5120,
    is_integrated=False,
    gcnArchName="",
)
"""What torch.cuda.get_device_properties returns for an H100."""

_SOURCE = Path(__file__).with_name("guard.cpp")


def missing() -> str | None:
    """Return what this machine lacks for a fake device, in a phrase; None if nothing."""
    import torch

    if torch.version.cuda is not None:
        return "torch is built for CUDA; a fake device needs a CPU build"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if shutil.which("g++") is None:
        return "no C++ compiler found (g++)"
    return None


def activate() -> None:
    """Fake an H100 until the end of this process, which must not have imported torch yet."""
    assert "torch" not in sys.modules, "torch knows already that there is no device"
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    package = _torch()
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(package / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(_library(package)))
    _answer_queries()
    _answer_dynamo()
    _answer_triton()
    _keep_inductor_from_measuring()


def _torch() -> Path:
    """Return torch's folder without importing torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _library(package: Path) -> Path:
    """Return the library of guard.cpp, which is compiled once for each version of torch."""
    version = f"{importlib.metadata.version('torch')} {_SOURCE.read_text()}"
    folder = Path(tempfile.gettempdir()) / f"gam_scale_fake_cuda_{os.getuid()}"
    library = folder / f"{hashlib.sha256(version.encode()).hexdigest()[:16]}.so"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} is another user's"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", f"-I{package / 'include'}"]
        command += [str(_SOURCE), "-o", str(made)]
        command += [f"-L{package / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run(command, check=True)
        made.replace(library)  # at once: another process may be making it too
    return library


def _answer_queries() -> None:
    """Answer what our code and torch's ask of torch.cuda."""
    import torch
    import torch._subclasses.fake_tensor as fake_tensor

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _set_device,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_device_properties": lambda device=None: H100,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: H100.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "current_stream": lambda device=None: SimpleNamespace(
            cuda_stream=0, stream_id=0, device=torch.device("cuda:0")
        ),
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.cuda.random.get_rng_state = answers["get_rng_state"]
    torch.cuda.random.set_rng_state = answers["set_rng_state"]
    torch.version.cuda = "13.0"
    fake_tensor.init_gpu_context = lambda *args, **kwargs: None  # type: ignore[assignment]
    for module in (torch.cuda.amp.common, torch.amp.autocast_mode):
        module.amp_definitely_not_available = lambda: False  # type: ignore[attr-defined]


def _set_device(device: Any) -> None:
    """Accept what torch.cuda.set_device accepts: a number, or a device that has one."""
    import torch

    torch.cuda._utils._get_device_index(device)


def _answer_dynamo() -> None:
    """Answer what the compiler asks of a device's interface."""
    import torch.utils._triton as has
    from torch._dynamo.device_interface import CudaInterface

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _set_device,
        "exchange_device": lambda device: 0,
        "maybe_exchange_device": lambda device: 0,
        "get_device_properties": lambda device=None: H100,
        "get_compute_capability": lambda device=None: 90,
        "get_raw_stream": lambda device=0: 0,
        "is_bf16_supported": lambda including_emulation=False: True,
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
        "synchronize": lambda device=None: None,
    }
    for name, answer in answers.items():
        setattr(CudaInterface, name, staticmethod(answer))
    for name in ("get_device_properties", "current_device", "set_device"):
        setattr(CudaInterface.Worker, name, staticmethod(answers[name]))
    for query in (has.has_triton_package, has.has_triton):
        if hasattr(query, "cache_clear"):
            query.cache_clear()


def _answer_triton() -> None:
    """Answer what inductor asks of the driver."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = {
        "max_shared_mem": H100.shared_memory_per_block_optin,
        "multiprocessor_count": H100.multi_processor_count,
        "max_num_regs": H100.regs_per_multiprocessor,
        "warpSize": H100.warp_size,
        "mem_clock_rate": H100.memory_clock_rate,
        "mem_bus_width": H100.memory_bus_width,
        "sm_clock_rate": H100.clock_rate,
    }
    driver._active = driver._default = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
        get_device_interface=lambda: torch.cuda,
        get_active_torch_device=lambda: torch.device("cuda:0"),
        utils=SimpleNamespace(get_device_properties=lambda device: properties),
    )


def _keep_inductor_from_measuring() -> None:
    """Keep inductor from running constants, or trials of shapes or patterns, on the device."""
    import torch._inductor.config as config
    import torch._inductor.fx_passes.fuse_attention as fuse_attention
    import torch._inductor.fx_passes.pad_mm as pad_mm

    config.fx_graph_cache = False
    config.compile_threads = 1
    config.shape_padding = config.force_shape_pad = False
    config.joint_graph_constant_folding = False
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    fuse_attention._sfdp_init = pad_mm._pad_mm_init = nothing
