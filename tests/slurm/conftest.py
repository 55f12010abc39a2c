"""A Slurm of four nodes, started once for the tests marked ``slurm``; skips them elsewhere."""

from collections.abc import Iterator

import pytest
from slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The running cluster; see :class:`Cluster`."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm tests: {reason}")
    with Cluster(4) as cluster:
        yield cluster
