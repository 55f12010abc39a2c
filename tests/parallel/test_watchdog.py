"""A failing, dying or missing rank is named on all other ranks, and no rank hangs."""

import json
import os
import pickle
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from gam_scale.parallel import flight, watchdog
from gam_scale.parallel.signs import Signs
from gam_scale.parallel.world import World
from gam_scale.run.lock import RunLock


def watched(world, action, timeout_s=60.0):
    """Run a step in which rank 1 does ``action``; "die as the reader" is for rank 0."""
    import os
    import signal
    import time

    from gam_scale import pulse
    from gam_scale.parallel.watchdog import Watchdog

    with Watchdog(world, timeout_s) as dog:
        if world.rank == 1 and action == "die at once":
            os.kill(os.getpid(), signal.SIGKILL)
        dog.at(3, "backward")
        world.barrier()
        time.sleep(1.2)  # two signs of life
        if world.rank == 1 and action == "raise":
            raise ValueError("the reason")
        if world.rank == 1 and action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if world.rank == 0 and action == "die as the reader":
            os.kill(os.getpid(), signal.SIGKILL)
        if world.rank == 1 and action == "work":
            for _ in range(14):
                time.sleep(0.5)
                pulse.beat()
        if world.rank == 1 and action == "sleep":
            dog.at(3, "reading data")
            time.sleep(120)
        world.barrier()
    return "done"


def mistaken(world, is_full):
    """Rank 1 meets a mistake of the user, worded like a lost connection; then all ranks stop."""
    import errno

    from gam_scale.errors import MistakeElsewhere, Stopped, UserError
    from gam_scale.parallel.watchdog import Watchdog

    try:
        with Watchdog(world, 60.0) as dog:
            if world.rank == 1:
                if is_full:
                    raise OSError(errno.ENOSPC, "No space left", "runs/peer-review/metrics.jsonl")
                raise UserError("runs/peer-review is no run")
            dog._stop.set()  # else the thread may end this process before it returns
            raise RuntimeError("Connection closed by peer")
    except (UserError, OSError, MistakeElsewhere) as error:
        said = f"{type(error).__name__}: {error}"
    world.barrier()
    try:
        with Watchdog(world, 60.0) as dog:
            dog._explain = None  # a stop needs no explanation
            raise Stopped
    except Stopped:
        return said


@pytest.mark.parametrize(
    ("is_full", "said"),
    [
        (False, "UserError: runs/peer-review is no run"),
        (True, "OSError: [Errno 28] No space left: 'runs/peer-review/metrics.jsonl'"),
    ],
)
def test_a_mistake_is_told_as_one_and_a_stop_is_no_failure(is_full, said):
    zero, one = run_ranks(mistaken, 2, is_full=is_full)
    assert one == said
    assert zero == f"MistakeElsewhere: rank 1 failed at step 0, starting: {one}"


def test_a_mistake_that_rank_0_alone_meets_is_one_on_all(tmp_path, tiny):
    """No rank's exit status asks for a restart, although rank 0 takes the ranks' store along."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    place |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gam_scale.train.in_turn", config]
    with RunLock(tmp_path / "run"):
        ranks = [
            subprocess.Popen(command, env=os.environ | place | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in "01"
        ]
        try:
            assert [rank.wait(100) for rank in ranks] == [2, 2]
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


@pytest.mark.parametrize("timeout_s", [60.0, 0.0])
def test_without_its_launcher_a_rank_may_wait_for_others_as_long_as_with_it(monkeypatch, timeout_s):
    """The others may write a checkpoint for minutes, and this rank cannot see their progress."""
    monkeypatch.setattr(watchdog, "LOST_S", 0.0)
    dog = watchdog.Watchdog(World(0, 1, 0, 1, torch.device("cpu")), timeout_s)
    looks, ended = iter([False] * 3 + [True]), []
    monkeypatch.setattr(dog._stop, "wait", lambda seconds: next(looks))
    monkeypatch.setattr(dog, "_end", ended.append)
    dog._watch_alone()
    assert bool(ended) == (timeout_s == 0.0)


def failure(action, **arguments):
    with pytest.raises(AssertionError) as caught:
        run_ranks(watched, 3, action=action, **arguments)
    return by_rank(str(caught.value))


def by_rank(text):
    """Cut the report of ``run_ranks`` into what each of three ranks wrote."""
    parts = {}
    for chunk in ("\n" + text).split("\nrank ")[1:]:
        head, _, rest = chunk.partition(" exited with ")
        if head.isdigit():
            parts[int(head)] = rest
            last = int(head)
        else:
            parts[last] += "\nrank " + chunk
    return [parts.get(rank, "") for rank in range(3)]


def test_an_error_is_named_on_every_rank(monkeypatch, tmp_path):
    """Each other rank leaves its record, whether its collective fails first or its watchdog."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "100")
    monkeypatch.setenv(flight.FILE, f"{tmp_path}/flight_rank_")
    zero, one, two = failure("raise")
    for rank, report in ((0, zero), (2, two)):
        assert "rank 1 failed at step 3, backward: ValueError: the reason" in report
        assert (tmp_path / f"flight_rank_{rank}").stat().st_size
    assert "Traceback" in one and "ValueError: the reason" in one


@pytest.mark.parametrize(
    ("action", "last"), [("die", "last at step 3, backward"), ("die at once", "nor any before")]
)
def test_a_killed_rank_is_named_on_every_other(action, last):
    zero, one, two = failure(action)
    assert one.startswith("-9")
    for report in (zero, two):
        assert "rank 1 is gone" in report and last in report
        assert report.splitlines()[-1].count("EndedByOthers"), "a defect of another rank as its own"


def test_rank_0_who_reads_for_all_is_named_where_the_launcher_keeps_the_store():
    zero, one, two = failure("die as the reader")
    assert zero.startswith("-9")
    for report in (one, two):
        assert "rank 0 is gone" in report and "last at step 3, backward" in report


def test_a_collective_that_never_comes_names_the_missing_rank(monkeypatch, tmp_path):
    """Each rank also logs where it stands, and leaves a record of its collectives."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "100")
    monkeypatch.setenv(flight.FILE, f"{tmp_path}/flight_rank_")
    zero, one, two = failure("sleep", timeout_s=4.0)
    for rank, report in enumerate((zero, one, two)):
        assert "rank 1 is missing" in report
        assert "rank 0: step 3, backward" in report and "rank 1: step 3, reading data" in report
        assert "in watched" in report, "not where its main thread stands"
        record = pickle.loads((tmp_path / f"flight_rank_{rank}").read_bytes())
        barriers = [e for e in record["entries"] if e["profiling_name"] == "gloo:barrier"]
        assert len(barriers) == (1 if rank == 1 else 2), "not what each rank waits in"


class CountingStore:
    """Wraps a real store, and counts the requests to it."""

    def __init__(self):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.requests = 0

    def __getattr__(self, name):
        self.requests += 1
        return getattr(self.store, name)


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_requests_of_a_beat_do_not_grow_with_the_ranks(rank):
    for world_size in (8, 512):
        store = CountingStore()
        ours = [Signs(store, other, world_size) for other in sorted({0, rank})]
        for _ in range(3):
            for signs in ours:
                before = store.requests
                signs.beat(3, "backward")
                assert store.requests - before == 2, f"{world_size} ranks"


def test_long_work_of_one_rank_is_no_hang_while_pieces_of_it_get_done():
    assert run_ranks(watched, 3, action="work", timeout_s=4.0) == ["done"] * 3


def test_a_run_that_ends_well_leaves_nothing_behind():
    assert run_ranks(watched, 3, action="none") == ["done"] * 3
