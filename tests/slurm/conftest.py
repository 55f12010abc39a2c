"""A Slurm of four nodes, started once for the tests marked ``slurm``; skips them elsewhere."""

from collections.abc import Iterator

import pytest
from slurm.cluster import Cluster, why_not
from slurm.jobs import end_all, submit


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The running cluster; see :class:`Cluster`."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm tests: {reason}")
    with Cluster(4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(slurm, prepared_set, tmp_path_factory) -> dict[int, float]:
    """Losses of the run that nothing happened to."""
    job = submit(slurm, prepared_set, tmp_path_factory.mktemp("undisturbed"))
    assert job.finish() == "COMPLETED" and job.restarts == 0, job.said()
    return job.losses()


@pytest.fixture
def start(slurm, prepared_set, tmp_path):
    """``start(*sbatch options)`` submits the run; what is left of it ends with the test."""
    yield lambda *options, **more: submit(slurm, prepared_set, tmp_path, *options, **more)
    end_all(slurm)
