"""Ranks of one start meet only each other, whatever else uses their store or their port."""

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist
from ranks import run_ranks

from gam_scale.errors import EndedByOthers, Stopped, UserError
from gam_scale.parallel.meeting import meet


@pytest.fixture
def kept() -> dist.TCPStore:
    """Open a store, as a launcher's agent keeps one."""
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def met(port: int, jobs: dict[str, int], **options) -> dict[str, list[dist.Store]]:
    """Start all ranks of ``jobs`` (sizes by name) at the same time; return their stores by job."""
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
        assert_own_store(met(kept.port, {"job": 3}, agent_keeps_store=True)["job"], attempt)


def test_ranks_that_died_while_they_met_are_not_waited_for(kept):
    with pytest.raises(EndedByOthers, match="rank 1 found no rank 0"):
        meet("127.0.0.1", kept.port, "job", 1, 3, 0.2, agent_keeps_store=True)
    with pytest.raises(EndedByOthers, match="of 3 ranks these did not come to rank 0: 1, 2"):
        meet("127.0.0.1", kept.port, "job", 0, 3, 0.2, agent_keeps_store=True)
    assert_own_store(met(kept.port, {"job": 3}, agent_keeps_store=True)["job"], "again")


def test_a_taken_port_is_named_and_the_next_is_taken(free_port, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    with socket.create_server(("", free_port)):  # accepts connections and never answers
        with caplog.at_level("WARNING", "gam_scale"):
            meetings = met(free_port, {"job": 2}, agent_keeps_store=False)
        assert_own_store(meetings["job"], "here")
    assert f"MASTER_PORT {free_port} is taken by another process" in caplog.text


def test_jobs_that_were_given_one_port_meet_apart(free_port):
    for job, stores in met(free_port, {"a": 2, "b": 3}, agent_keeps_store=False).items():
        assert_own_store(stores, job)


def test_a_store_that_ends_is_left_for_the_next_at_its_port(free_port):
    """Rank 1 may begin its process's second run before rank 0 has left the first one."""
    first = [dist.TCPStore("127.0.0.1", free_port, is_master=True, wait_for_workers=False)]
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            meet, "127.0.0.1", free_port, "job", 1, 2, 20.0, agent_keeps_store=False
        )
        wait_until(lambda: first[0].check(["job/name of 1"]))
        first.clear()
        zero = meet("127.0.0.1", free_port, "job", 0, 2, 20.0, agent_keeps_store=False)
        assert_own_store([zero, call.result()], "second")


@pytest.mark.parametrize("stopped", [0, 1])
def test_all_who_wait_stop_where_one_is_asked_to(free_port, stopped):
    """Two of three ranks wait; the third never comes."""
    asked = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(
                *(meet, "127.0.0.1", free_port, "job", rank, 3, 20.0),
                asked.is_set if rank == stopped else lambda: False,
                agent_keeps_store=False,
            )
            for rank in (0, 1)
        ]
        store = dist.TCPStore("127.0.0.1", free_port, is_master=False)
        wait_until(lambda: store.check(["job/agreed by 1"]))
        asked.set()
        for rank, call in enumerate(calls):
            with pytest.raises(Stopped):
                raise AssertionError(f"rank {rank} met {call.result()}")


def test_who_has_agreed_does_not_stop_alone_once_all_have(kept):
    """Rank 0 ends the meeting between two looks of rank 1, and then waits for it in their group."""
    store = dist.PrefixStore("job", kept)

    def asked() -> bool:
        if agreed := store.check(["agreed by 1"]):
            store.set("end of zero", store.get("proposal"))
        return agreed

    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(
            meet, "127.0.0.1", kept.port, "job", 1, 2, 20.0, asked, agent_keeps_store=True
        )
        wait_until(lambda: store.check(["name of 1"]))
        store.set("proposal", f"zero {store.get('name of 1').decode()}")
        assert_own_store([dist.PrefixStore("job/zero", kept), call.result()], "both")


def wait_until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "what is waited for never comes"
        time.sleep(0.01)


def test_no_free_port_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="cannot listen at MASTER_PORT 80 nor at"):
        monkeypatch.setattr(dist, "TCPStore", _refused)
        meet("127.0.0.1", 80, "job", 0, 2, 1.0, agent_keeps_store=False)


def _refused(*args, **options):
    raise dist.DistNetworkError("the port may not be used\nand a dump of the stack")


def time_outs(world):
    """Return the time-out in seconds of every process group, whoever made it."""
    import torch
    from torch.distributed import distributed_c10d as c10d

    from gam_scale.config import ParallelConfig

    for parallel in (ParallelConfig(context=2), ParallelConfig(engine="fsdp")):
        assert world.arranged(parallel).sharding_mesh.ndim == 2
    groups = [group._get_backend(torch.device("cpu")) for group in c10d._world.pg_map]
    return [group.options._timeout.total_seconds() for group in groups]


def test_no_group_gives_up_before_the_watchdog_does():
    for seconds in run_ranks(time_outs, 2):
        assert len(seconds) > 2 and min(seconds) > 1800.0, seconds
