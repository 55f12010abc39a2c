"""Peak rates: data sheets of GPUs by name, and a measured one."""

import pytest
import torch

from gam_scale.hardware import peak
from gam_scale.hardware.peak import device_peak_flops


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(name)`` makes torch call its GPU so; a measured rate is a fixed figure."""

    def pretend(name: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    measured = peak.Peak(1.0, "measured")
    monkeypatch.setattr(peak, "_measured_peak", lambda device, precision, threads: measured)
    return pretend


@pytest.mark.parametrize(
    ("name", "bf16", "fp32", "label"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 67, "H100 SXM"),
        ("NVIDIA H100 PCIe", 756, 51, "H100 PCIe"),
        ("NVIDIA H200", 989.4, 67, "H200 SXM"),
        ("NVIDIA H200 NVL", 835.5, 60, "H200 NVL"),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5, "A100"),
        ("NVIDIA A10", 125, 31.2, "A10"),
        ("NVIDIA L40S", 362, 91.6, "L40S"),
        ("NVIDIA L4", 121, 30.3, "L4"),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, "RTX 3090"),
    ],
)
def test_known_gpus_have_their_dense_data_sheet_rate(gpu, name, bf16, fp32, label):
    gpu(name)
    assert device_peak_flops("cuda", "bf16") == (bf16 * 1e12, f"{label} data sheet")
    assert device_peak_flops("cuda", "fp32") == (fp32 * 1e12, f"{label} data sheet")


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",  # neither an A10 nor an A100
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a slice of an A100
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H20",
        "Some GPU 9000",
    ],
)
def test_other_gpus_are_measured(gpu, name):
    gpu(name)
    assert device_peak_flops("cuda", "bf16").source == "measured"


def test_a_gpu_without_bf16_units_is_measured_in_bf16(gpu):
    gpu("Tesla V100-SXM2-16GB")
    assert device_peak_flops("cuda", "bf16").source == "measured"
    assert device_peak_flops("cuda", "fp32") == (15.7e12, "V100 SXM data sheet")


def test_fp32_means_tf32_only_where_torch_may_use_it(gpu):
    gpu("NVIDIA A100-SXM4-80GB")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert device_peak_flops("cuda", "fp32").flops == 156e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert device_peak_flops("cuda", "fp32").flops == 19.5e12


def test_the_measured_rate_is_the_best_size(monkeypatch):
    seconds = {512: 0.001, 1024: 0.01, 2048: 0.06}  # the last is slow enough to stop after
    monkeypatch.setattr(peak, "_matmul_seconds", lambda n, dtype, device: seconds[n])
    peak._measured_peak.cache_clear()
    flops, source = device_peak_flops("cpu", "fp32")
    monkeypatch.undo()
    assert device_peak_flops("cpu", "fp32") == (flops, source), "measured again"
    peak._measured_peak.cache_clear()
    assert flops == pytest.approx(2 * 2048**3 / 0.06)
    assert source == "measured 2048^3 matmul"


def test_this_cpu_has_a_plausible_rate():
    # Between a millionth and a thousand times what one CPU core does: a unit error would show.
    assert 1e7 < 2 * 256**3 / peak._matmul_seconds(256, torch.float32, torch.device("cpu")) < 1e14
