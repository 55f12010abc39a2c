"""Threads of a rank: its share of the physical cores, unless the environment says otherwise."""

import os

import pytest

from gam_scale.hardware import processor
from gam_scale.hardware.processor import cpu_threads


def test_threads_share_the_physical_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processor, "_physical_cores", lambda: 8)
    assert [cpu_threads(n) for n in (1, 3, 8, 9)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_threads(4) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads(4) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun sets 1 by itself
    assert cpu_threads(4) == 2


def test_hyper_threads_of_a_core_count_once(monkeypatch, tmp_path):
    assert 1 <= processor._physical_cores() <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no CPU affinity")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(processor, "Path", lambda path: tmp_path)
    assert processor._physical_cores() == 2
