"""Dense rates of GPUs from data sheets, found by the name that torch has for a GPU."""

import re
from typing import Literal, NamedTuple

Precision = Literal["fp32", "bf16"]


class Peak(NamedTuple):
    """The rate a device's matrix multiplications can reach, in FLOP/s, and where it comes from."""

    flops: float
    source: str


# Dense (no structured sparsity) TFLOP/s with fp32 accumulation: bf16, TF32, fp32. From NVIDIA's
# product data sheets and, for RTX cards, its whitepapers "Ada" and "Ampere GA102". Sheets that
# print only the sparse rate are halved. Zero: the precision has no matrix unit, so measure.
# A GPU that is not listed is measured. First match wins.
_DATA_SHEETS: list[tuple[str, str, tuple[float, float, float]]] = [
    (r"\bB200\b", "B200", (2250, 1125, 75)),  # an eighth of "HGX B200"
    (r"\bGH200\b", "GH200", (989.4, 494.7, 67)),
    (r"\bH200 NVL\b", "H200 NVL", (835.5, 417.5, 60)),
    (r"\bH200\b", "H200 SXM", (989.4, 494.7, 67)),
    (r"\bH100 PCIe\b", "H100 PCIe", (756, 378, 51)),
    (r"\bH100 NVL\b", "H100 NVL", (835.5, 417.5, 60)),
    (r"\bH100\b", "H100 SXM", (989.4, 494.7, 67)),
    (r"\bA100\b", "A100", (312, 156, 19.5)),
    (r"\bA40\b", "A40", (149.7, 74.8, 37.4)),
    (r"\bA30\b", "A30", (165, 82, 10.3)),
    (r"\bA10\b", "A10", (125, 62.5, 31.2)),
    (r"\bL40S\b", "L40S", (362, 183, 91.6)),
    (r"\bL40\b", "L40", (181, 90.5, 90.5)),
    (r"\bL4\b", "L4", (121, 60, 30.3)),
    (r"\bV100-PCIE\b", "V100 PCIe", (0, 0, 14)),
    (r"\bV100-SXM", "V100 SXM", (0, 0, 15.7)),
    (r"\bT4\b", "T4", (0, 0, 8.1)),
    (r"\bRTX A6000$", "RTX A6000", (154.8, 77.4, 38.7)),
    (r"\bRTX 4090$", "RTX 4090", (165.2, 82.6, 82.6)),
    (r"\bRTX 3090$", "RTX 3090", (71, 35.6, 35.6)),
]


def data_sheet_peak(name: str, precision: Precision, tf32: bool = False) -> Peak | None:
    """Return a GPU's rate; None if it is not listed, has no such units, or is a MIG slice.

    Args:
        name: the GPU's name as torch has it.
        precision: of the products.
        tf32: whether fp32 products are computed in TF32.
    """
    if " MIG " in name:
        return None
    column = 0 if precision == "bf16" else 1 if tf32 else 2
    for pattern, label, teraflops in _DATA_SHEETS:
        if re.search(pattern, name):
            rate = teraflops[column]
            return Peak(rate * 1e12, f"{label} data sheet") if rate else None
    return None
