"""Memory, rates and links of GPUs and of this machine's CPU: the figures behind a plan."""

import os
import re
from dataclasses import dataclass

from gam_scale.errors import UserError, one_line
from gam_scale.hardware.container import memory_limit
from gam_scale.hardware.data_sheets import Precision, data_sheet_peak

RESERVED = 0.10
"""Share of the memory left to CUDA's context, NCCL's buffers and the allocator's gaps."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the network that its nodes usually have."""

    name: str
    peaks: dict[Precision, float]  # dense matmul FLOP/s, only of precisions that it has units for
    memory_bytes: float
    link_bytes: float  # per second and direction, between the GPUs of one node
    network_bits: float  # per second and GPU, between nodes
    memory_rate: float | None  # bytes per second to and from its memory; None: time not counted
    tf32: float | None = None  # FLOP/s of fp32 products that may be computed in TF32

    def peak_flops(self, precision: Precision) -> float:
        """Return the dense matmul FLOP/s of a precision.

        Raises:
            UserError: the GPU has no units for that precision, or its rate was not given.
        """
        if precision not in self.peaks:
            raise UserError(
                f"{self.name} has no rate for {precision}; expected train.precision "
                f"{' or '.join(self.peaks)}"
            )
        return self.peaks[precision]

    def fp32_flops(self, *, tf32: bool) -> float:
        """Return the FLOP/s of fp32 products, which ``tf32`` allows to be computed in TF32."""
        return self.tf32 if tf32 and self.tf32 is not None else self.peak_flops("fp32")

    @property
    def usable_bytes(self) -> float:
        """Memory that a run's tensors may take."""
        return self.memory_bytes * (1 - RESERVED)


_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
_GIB, _GB, _GBIT, _TFLOPS = 2.0**30, 1e9, 1e9, 1e12

# By name: torch's name for the GPU, by which gam_scale.hardware.data_sheets has its FLOP/s; GiB of
# memory; GB/s to memory; GB/s between GPUs of a node; Gb/s between nodes. Memory, its rate and the
# links are from NVIDIA's product data sheets ("HGX B200", "H100 Tensor Core GPU", "H200", "A100",
# "L40S", "L4", "T4", "V100", "GeForce RTX 4090", whose memory rate is in the whitepaper "Ada"). A
# sheet's GB of device memory are GiB. Its link figure adds up both directions, of which a ring uses
# each once, so it is halved here: B200 1,800 GB/s of NVLink, H100, H200 900, A100 600, V100 SXM2
# 300; L40S, L4 and RTX 4090 have PCIe 4.0 x16 (64 GB/s), T4 has PCIe 3.0 x16 (32 GB/s). Networks
# are assumptions, one adapter a GPU as in NVIDIA's own DGX: NDR InfiniBand (400 Gb/s) beside B200,
# H100 and H200, HDR (200 Gb/s) beside A100; beside V100 EDR (100 Gb/s), where four adapters served
# eight GPUs, so 50 each; 100 Gb/s Ethernet for cards without NVLink, 25 for the small L4 and T4.
_GPUS = {
    "b200": ("NVIDIA B200", 180, 8000, 900, 400),
    "h200": ("NVIDIA H200", 141, 4800, 450, 400),
    "h100": ("NVIDIA H100 80GB HBM3", 80, 3350, 450, 400),
    "a100-80": ("NVIDIA A100-SXM4-80GB", 80, 2039, 300, 200),
    "a100-40": ("NVIDIA A100-SXM4-40GB", 40, 1555, 300, 200),
    "l40s": ("NVIDIA L40S", 48, 864, 32, 100),
    "rtx4090": ("NVIDIA GeForce RTX 4090", 24, 1008, 32, 100),
    "l4": ("NVIDIA L4", 24, 300, 32, 25),
    "v100-32": ("Tesla V100-SXM2-32GB", 32, 900, 150, 50),
    "v100-16": ("Tesla V100-SXM2-16GB", 16, 900, 150, 50),
    "t4": ("Tesla T4", 16, 320, 16, 25),
}
KNOWN = ", ".join(_GPUS)

# Figures that may be given of a GPU that is not in the table: unit, and whether it is required.
_GIVEN = {
    "memory": (_GIB, True),
    "bandwidth": (_GB, True),
    "bf16": (_TFLOPS, False),
    "fp32": (_TFLOPS, True),
    "link": (_GB, False),
    "network": (_GBIT, False),
}
GIVEN = "memory=GiB, bandwidth=GB/s, bf16=TFLOP/s, fp32=TFLOP/s, link=GB/s, network=Gb/s"


def find_gpu(name: str) -> Gpu:
    """Return the GPU of that name.

    Raises:
        UserError: the table has no such name.
    """
    if name.lower() not in _GPUS:
        raise UserError(
            f"--gpu is {one_line(name)}, which is not in the table; expected one of {KNOWN}, cpu, "
            f"or figures, {GIVEN}"
        )
    device, memory, rate, link, network = _GPUS[name.lower()]
    peaks = {p: data_sheet_peak(device, p) for p in _PRECISIONS}
    rates = {precision: peak.flops for precision, peak in peaks.items() if peak}
    tf32 = data_sheet_peak(device, "fp32", tf32=True)
    sizes = memory * _GIB, link * _GB, network * _GBIT, rate * _GB
    return Gpu(name.lower(), rates, *sizes, tf32.flops if tf32 else None)


def given_gpu(text: str) -> Gpu:
    """Parse figures of a GPU: ``memory=96,bandwidth=3000,bf16=900,fp32=60,link=450,network=400``.

    The link is 32 GB/s (PCIe 4.0 x16) and the network 100 Gb/s if they are not given.

    Raises:
        UserError: a figure is unknown, missing, or no number above 0.
    """
    figures = {"link": 32 * _GB, "network": 100 * _GBIT}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in _GIVEN or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) or not float(value):
            raise UserError(f"--gpu has {one_line(part)}; expected figures above 0, {GIVEN}")
        figures[key] = float(value) * _GIVEN[key][0]
    missing = [key for key, (_, needed) in _GIVEN.items() if needed and key not in figures]
    if missing:
        raise UserError(f"--gpu {one_line(text)} lacks {missing[0]}; expected it among {GIVEN}")
    peaks = {precision: figures[precision] for precision in _PRECISIONS if precision in figures}
    sizes = (figures[key] for key in ("memory", "link", "network", "bandwidth"))
    return Gpu("GPUs", peaks, *sizes)


def this_cpu(ranks: int, precision: Precision) -> Gpu:
    """Return one rank's share, of ``ranks``, of this machine's CPU and memory.

    The call measures rates of products; time for memory traffic is not counted. Ranks are assumed
    to exchange through memory at 2 GB/s, and between machines at 10 Gb/s.
    """
    # Imported only to measure: it imports torch, which takes seconds that reports need not wait.
    from gam_scale.hardware.peak import device_peak_flops

    peaks: dict[Precision, float] = {
        p: device_peak_flops("cpu", p).flops / ranks for p in dict.fromkeys((precision, "fp32"))
    }
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = min(machine, memory_limit() or machine)
    return Gpu("this CPU", peaks, memory / ranks, 2 * _GB, 10 * _GBIT, None)
