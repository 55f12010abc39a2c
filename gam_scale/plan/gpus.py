"""What a GPU, or this machine's CPU, holds, computes and exchanges: the figures behind a plan."""

import os
import re
from dataclasses import dataclass

from gam_scale.errors import UserError, one_line
from gam_scale.hardware.data_sheets import Precision, data_sheet_peak

RESERVED = 0.10
"""Share of the memory left to CUDA's context, NCCL's buffers and the allocator's gaps."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the network that its nodes usually have."""

    name: str
    peaks: dict[Precision, float]  # dense matmul FLOP/s; a precision without units is not there
    memory_bytes: float
    link_bytes: float  # per second and direction, between the GPUs of one node
    network_bits: float  # per second and GPU, between nodes
    memory_rate: float | None  # bytes per second to and from its memory; None: not counted

    def peak_flops(self, precision: Precision) -> float:
        """Dense matmul FLOP/s.

        Raises:
            UserError: the GPU has no units for that precision, or its rate was not given.
        """
        if precision not in self.peaks:
            raise UserError(
                f"{self.name} has no rate for {precision}; expected train.precision "
                f"{' or '.join(self.peaks)}"
            )
        return self.peaks[precision]

    @property
    def usable_bytes(self) -> float:
        """Memory that a run's tensors may take."""
        return self.memory_bytes * (1 - RESERVED)


_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
_GIB, _GB, _GBIT, _TFLOPS = 2.0**30, 1e9, 1e9, 1e12

# GiB, GB/s to its memory, GB/s between the GPUs of a node, Gb/s between nodes; rates are in
# gam_scale.hardware.data_sheets, by the name that torch has for the GPU. Memory, its rate and links
# from NVIDIA's product data sheets ("HGX B200", "H100 Tensor Core GPU", "H200", "A100", "L40S",
# "L4", "T4", "V100", "GeForce RTX 4090"; of the last, the whitepaper "Ada" has the rate). A sheet's
# GB of device memory are GiB; its link figure adds up both directions, of which a ring uses each
# once, so it is halved here: B200 1,800 GB/s of NVLink, H100 and H200 900, A100 600, V100 SXM2 300.
# L40S, L4 and RTX 4090 have PCIe 4.0 x16 (64 GB/s), T4 has PCIe 3.0 x16 (32 GB/s). Networks are
# assumptions, one adapter a GPU as in NVIDIA's own DGX: NDR InfiniBand (400 Gb/s) beside B200, H100
# and H200, HDR (200 Gb/s) beside A100, EDR (100 Gb/s) beside V100, where four adapters served eight
# GPUs: 50 each; 100 Gb/s Ethernet for cards without NVLink, 25 beside the small L4 and T4.
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

# What may be given of a GPU that is not in the table: its unit, and whether it must be.
_GIVEN = {
    "memory": (_GIB, True),
    "bandwidth": (_GB, True),
    "bf16": (_TFLOPS, False),
    "fp32": (_TFLOPS, True),
    "link": (_GB, False),
    "network": (_GBIT, False),
}
GIVEN = "memory=GiB,bandwidth=GB/s,bf16=TFLOP/s,fp32=TFLOP/s,link=GB/s,network=Gb/s"


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: it is not in the table.
    """
    if name.lower() not in _GPUS:
        raise UserError(
            f"--gpu is {one_line(name)}, which is not in the table; expected one of {KNOWN}, cpu, "
            f"or figures, {GIVEN}"
        )
    device, memory, rate, link, network = _GPUS[name.lower()]
    peaks = {p: data_sheet_peak(device, p) for p in _PRECISIONS}
    rates = {precision: peak.flops for precision, peak in peaks.items() if peak}
    return Gpu(name.lower(), rates, memory * _GIB, link * _GB, network * _GBIT, rate * _GB)


def given_gpu(text: str) -> Gpu:
    """A GPU by its figures: ``memory=96,bandwidth=3000,bf16=900,fp32=60,link=450,network=400``.

    A link that is not given is PCIe 4.0 x16's 32 GB/s, a network 100 Gb/s.

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
    """This machine's CPU as one of ``ranks`` sees it: its share of cores and memory.

    Rates of products are measured now; what its memory moves is not counted. What ranks exchange
    goes through memory, at an assumed 2 GB/s, and between machines at an assumed 10 Gb/s.
    """
    # Only to measure takes torch, whose import costs seconds that reports need not wait.
    from gam_scale.hardware.peak import device_peak_flops

    peaks: dict[Precision, float] = {
        p: device_peak_flops("cpu", p).flops / ranks for p in dict.fromkeys((precision, "fp32"))
    }
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Gpu("this CPU", peaks, memory / ranks, 2 * _GB, 10 * _GBIT, None)
