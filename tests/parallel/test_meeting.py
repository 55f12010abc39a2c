"""Where ranks meet: not with those of an earlier start or another job, nor at a taken port."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from ranks import run_ranks

from gam_scale.errors import UserError
from gam_scale.parallel.meeting import meet


@pytest.fixture
def kept() -> dist.TCPStore:
    """A store that a launcher's agent keeps."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met(port: int, jobs: dict[str, int], **options) -> dict[str, list[dist.Store]]:
    """The stores of all ranks of ``jobs`` (their sizes by name), which start at the same time."""
    with ThreadPoolExecutor(sum(jobs.values())) as threads:
        calls = {
            job: [
                threads.submit(meet, "127.0.0.1", port, job, rank, size, 20.0, **options)
                for rank in reversed(range(size))
            ]
            for job, size in jobs.items()
        }
        return {job: [call.result() for call in ranks] for job, ranks in calls.items()}


def assert_own_store(stores: list[dist.Store], value: str) -> None:
    assert not any(store.check(["key"]) for store in stores), "a store of another start"
    stores[0].set("key", value)
    assert [store.get("key").decode() for store in stores] == [value] * len(stores)


def test_a_second_start_in_a_kept_store_meets_none_of_the_first(kept):
    for attempt in "first", "second", "third":
        assert_own_store(met(kept.port, {"job": 3}, kept=True)["job"], attempt)


def test_ranks_that_died_while_they_met_are_not_waited_for(kept):
    with pytest.raises(RuntimeError, match="rank 1 found no rank 0"):
        meet("127.0.0.1", kept.port, "job", 1, 3, 0.2, kept=True)
    with pytest.raises(RuntimeError, match="of 3 ranks these did not come to rank 0: 1, 2"):
        meet("127.0.0.1", kept.port, "job", 0, 3, 0.2, kept=True)
    assert_own_store(met(kept.port, {"job": 3}, kept=True)["job"], "again")


def test_a_taken_port_is_named_and_the_next_is_taken(free_port, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    with socket.create_server(("", free_port)):  # accepts, and says nothing
        with caplog.at_level("WARNING", "gam_scale"):
            meetings = met(free_port, {"job": 2}, kept=False)
        assert_own_store(meetings["job"], "here")
    assert f"MASTER_PORT {free_port} is taken by another process" in caplog.text


def test_jobs_that_were_given_one_port_meet_apart(free_port):
    for job, stores in met(free_port, {"a": 2, "b": 3}, kept=False).items():
        assert_own_store(stores, job)


def test_no_free_port_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="cannot listen at MASTER_PORT 80 nor at"):
        monkeypatch.setattr(dist, "TCPStore", _refused)
        meet("127.0.0.1", 80, "job", 0, 2, 1.0, kept=False)


def _refused(*args, **options):
    raise dist.DistNetworkError("the port may not be used\nand a dump of the stack")


def time_outs(world):
    """Of every group there is, whoever has made it."""
    import torch
    from torch.distributed import distributed_c10d as c10d
    from torch.distributed.device_mesh import init_device_mesh

    from gam_scale.parallel.context import SequenceContext

    SequenceContext(world, 2)
    init_device_mesh("cpu", (2, 1), mesh_dim_names=("replicate", "shard"))
    groups = [group._get_backend(torch.device("cpu")) for group in c10d._world.pg_map]
    return [group.options._timeout.total_seconds() for group in groups]


def test_no_group_gives_up_before_the_watchdog_does():
    for seconds in run_ranks(time_outs, 2):
        assert len(seconds) > 2 and min(seconds) > 1800.0, seconds
