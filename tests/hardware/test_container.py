"""Limits of a container: the tightest of its group and of the groups around it."""

import pytest

from gam_scale.hardware import container, processor
from gam_scale.hardware.container import cpu_limit, memory_limit


@pytest.fixture
def group(tmp_path, monkeypatch):
    """``group(path, **settings)`` makes this process's group, or one around it."""
    monkeypatch.setattr(container, "ROOT", tmp_path)
    monkeypatch.setattr(container, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("1:cpu:/elsewhere\n0::/job/step\n")

    def make(path, **settings):
        folder = tmp_path / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in settings.items():
            (folder / name.replace("_", ".")).write_text(f"{value}\n")

    return make


def test_no_limit_is_none(group):
    assert (cpu_limit(), memory_limit()) == (None, None)
    group("job/step", cpu_max="max 100000", memory_max="max")
    assert (cpu_limit(), memory_limit()) == (None, None)
    container.OWN.unlink()
    assert (cpu_limit(), memory_limit()) == (None, None)


def test_the_tightest_group_counts(group):
    group("job/step", cpu_max="max 100000", memory_max=8 << 30)
    group("job", cpu_max="250000 100000", memory_max=4 << 30)
    group("elsewhere", cpu_max="1000 100000", memory_max=1)
    assert (cpu_limit(), memory_limit()) == (2.5, 4 << 30)


def test_a_rank_starts_no_more_threads_than_its_container_may_run(group, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processor, "_physical_cores", lambda: 64)
    group("job", cpu_max="850000 100000")
    assert [processor.cpu_threads(ranks) for ranks in (1, 2, 16)] == [8, 4, 1]
