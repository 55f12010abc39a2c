"""What a GPU holds, computes and exchanges: the figures behind a plan."""

from dataclasses import dataclass

from gam_scale.errors import UserError
from gam_scale.hardware import Precision, data_sheet_peak

RESERVED = 0.10
"""Share of the memory left to CUDA's context, NCCL's buffers and the allocator's gaps."""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU and the network that its nodes usually have."""

    name: str
    device: str  # as torch names it, the key of gam_scale.hardware's data sheets
    memory_bytes: float
    link_bytes: float  # per second and direction, between the GPUs of one node
    network_bits: float  # per second and GPU, between nodes

    def peak_flops(self, precision: Precision) -> float:
        """Dense matmul FLOP/s from the data sheet, see :mod:`gam_scale.hardware`."""
        peak = data_sheet_peak(self.device, precision)
        assert peak is not None, f"{self.device} has no data sheet"
        return peak.flops

    @property
    def usable_bytes(self) -> float:
        """Memory that a run's tensors may take."""
        return self.memory_bytes * (1 - RESERVED)


_GIB, _GB, _GBIT = 2.0**30, 1e9, 1e9

# Memory and NVLink from NVIDIA's product data sheets ("H100 Tensor Core GPU", "H200", "A100",
# "L40S", "GeForce RTX 4090"). A sheet's GB of device memory are GiB; its NVLink figure adds up both
# directions, of which a ring uses each once, so it is halved here: H100 and H200 900 GB/s, A100
# 600 GB/s. L40S and RTX 4090 have no NVLink: their PCIe 4.0 x16 moves 32 GB/s each way. Networks
# are assumptions, one adapter a GPU as in NVIDIA's own DGX: NDR InfiniBand (400 Gb/s) beside H100
# and H200, HDR (200 Gb/s) beside A100, 100 Gb/s Ethernet for two cards without NVLink.
_GPUS = [
    Gpu("h100", "NVIDIA H100 80GB HBM3", 80 * _GIB, 450 * _GB, 400 * _GBIT),
    Gpu("h200", "NVIDIA H200", 141 * _GIB, 450 * _GB, 400 * _GBIT),
    Gpu("a100-80", "NVIDIA A100-SXM4-80GB", 80 * _GIB, 300 * _GB, 200 * _GBIT),
    Gpu("a100-40", "NVIDIA A100-SXM4-40GB", 40 * _GIB, 300 * _GB, 200 * _GBIT),
    Gpu("l40s", "NVIDIA L40S", 48 * _GIB, 32 * _GB, 100 * _GBIT),
    Gpu("rtx4090", "NVIDIA GeForce RTX 4090", 24 * _GIB, 32 * _GB, 100 * _GBIT),
]


def find_gpu(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        UserError: it is not in the table.
    """
    for gpu in _GPUS:
        if gpu.name == name.lower():
            return gpu
    known = ", ".join(gpu.name for gpu in _GPUS)
    raise UserError(f"--gpu is {name}, which is not in the table; expected one of {known}")
