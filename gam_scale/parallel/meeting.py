"""Rendezvous: the ranks of one start get a store of their own, whatever else uses the port.

A job that its launcher starts anew may find the store of the previous start, full of addresses of
processes that are gone (torchrun's agent keeps one store for all of its attempts), and its port
may have been taken by another program or another job's ranks. So no rank trusts what a store
holds. Every rank writes a newly drawn name, and rank 0 collects the names until all ranks have
agreed to one list or one of them has said that it was asked to stop; whichever comes first holds
for all. If rank 0 opens the store itself and the port is taken, it takes one of the next ports,
and the other ranks look there too.
"""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch.distributed as dist

from gam_scale.errors import EndedByOthers, Stopped, UserError

logger = logging.getLogger("gam_scale")

PORTS = 16
"""Number of ports to try: the given one and those after it."""
POLL_S = 0.02
KNOCK_S = 0.1
"""Seconds between attempts to connect."""
CONNECT_S = 2.0
"""Seconds for a host to accept a connection."""
ANSWER_S = 5.0
"""Seconds for whatever listens at a port to answer as a store does."""
READ_S = 1.0
"""Seconds that rank 0 gives the others to read that it stops, for its store ends with it."""
STOPPED = "stopped"


def meet(
    host: str,
    port: int,
    job: str,
    rank: int,
    world_size: int,
    timeout_s: float,
    asked_to_stop: Callable[[], bool] = lambda: False,
    *,
    agent_keeps_store: bool,
) -> dist.Store:
    """Return an empty store that all ranks of this start share, and no others.

    Args:
        host: where rank 0, or the launcher's agent, runs.
        port: the first port to try on that host.
        job: a name that the job's ranks share and that no other job has.
        rank: this process's rank.
        world_size: number of ranks that meet.
        timeout_s: seconds for all ranks to come.
        asked_to_stop: returns whether this process was asked to stop in the meantime.
        agent_keeps_store: whether the launcher's agent keeps the store; else rank 0 opens one.

    Raises:
        UserError: rank 0 can listen at none of the ports.
        EndedByOthers: a rank did not come in time.
        Stopped: a rank was asked to stop before all had come.
    """
    name, deadline = secrets.token_hex(8), time.monotonic() + timeout_s

    def late() -> bool:
        time.sleep(POLL_S)
        return time.monotonic() > deadline

    ports = range(port, port + 1) if agent_keeps_store else range(port, min(port + PORTS, 1 << 16))
    if rank > 0:
        store, start = _join(host, ports, job, rank, name, late, asked_to_stop)
    else:
        kept_one = _wait_for(host, port, late, asked_to_stop) if agent_keeps_store else None
        store = kept_one or _open(host, ports, world_size)
        ours = dist.PrefixStore(job, store)
        start = _gather(ours, name, world_size, late, asked_to_stop)
    return dist.PrefixStore(f"{job}/{start}", store)


def _open(host: str, ports: Sequence[int], world_size: int) -> dist.Store:
    for port in ports:
        try:
            store = dist.TCPStore(
                host,
                port,
                world_size,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=ANSWER_S),
            )
        except dist.DistNetworkError as error:
            reason = str(error)
            if "EADDRINUSE" not in reason:
                break
            continue
        if port != ports[0]:
            logger.warning(
                "MASTER_PORT %d is taken by another process: the ranks meet at %d", ports[0], port
            )
        return store
    raise UserError(
        f"rank 0 on {socket.gethostname()} cannot listen at MASTER_PORT {ports[0]} nor at the "
        f"{len(ports) - 1} after it ({reason.splitlines()[0]}); expected a free port there, and "
        f"MASTER_ADDR {host} to be this host"
    )


def _gather(
    store: dist.Store,
    name: str,
    world_size: int,
    late: Callable[[], bool],
    asked_to_stop: Callable[[], bool],
) -> str:
    """Do rank 0's part: propose the names that have come until every rank agrees to the list.

    Returns rank 0's own name, by which the start is known.
    """
    others, proposal = range(1, world_size), ""
    while True:
        names = [name, *(_read(store, f"name of {rank}") for rank in others)]
        if (now := " ".join(names)) != proposal:
            proposal = now
            store.set("proposal", proposal)
        absent = [rank for rank in others if _read(store, f"agreed by {rank}") != proposal]
        wish = STOPPED if asked_to_stop() else "" if absent else proposal
        end = _set_or_read_end(store, name, wish)
        if end == proposal:
            return name
        if end == STOPPED:
            time.sleep(READ_S)
            raise Stopped
        if late():
            shown = ", ".join(map(str, absent[:8])) + (", ..." if len(absent) > 8 else "")
            raise EndedByOthers(f"of {world_size} ranks these did not come to rank 0: {shown}")


def _join(
    host: str,
    ports: Sequence[int],
    job: str,
    rank: int,
    name: str,
    late: Callable[[], bool],
    asked_to_stop: Callable[[], bool],
) -> tuple[dist.Store, str]:
    """Do another rank's part: find the store where rank 0 proposes this rank's name, and agree.

    Returns that store and rank 0's name.
    """
    with _knocking(host, ports) as doors:
        while not late():
            stopping = asked_to_stop()
            for door in doors:
                if (store := door.store) is None:
                    continue
                try:
                    start = _answer(dist.PrefixStore(job, store), rank, name, stopping)
                except dist.DistError:  # its job has ended; the next store may be ours
                    door.store = None
                    continue
                if start:
                    return store, start
            if stopping:
                raise Stopped
        raise EndedByOthers(f"rank {rank} found no rank 0 at {host}:{ports[0]}, where it was to be")


def _answer(store: dist.Store, rank: int, name: str, stopping: bool) -> str:
    """Announce this rank, or its stop, in a store; return rank 0's name once all agree, else ""."""
    proposal = _read(store, "proposal")
    start, known = proposal.partition(" ")[0], name in proposal.split()
    if known:
        store.set(f"agreed by {rank}", proposal)
    else:
        store.set(f"name of {rank}", name)
    end = _set_or_read_end(store, start, STOPPED if stopping else "") if start else ""
    if known and end == STOPPED:
        raise Stopped
    return start if known and end == proposal else ""


def _set_or_read_end(store: dist.Store, start: str, wish: str) -> str:
    """Return how the meeting of the rank 0 named ``start`` ended: by the first wish; "" if none."""
    return store.compare_set(f"end of {start}", "", wish).decode()


class _Door(threading.Thread):
    """Connects to the store at a port as soon as there is one, and again once ``store`` is None.

    It is a thread, since a connection to something else that listens there silently never ends.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name=f"door {port}", daemon=True)
        self.store: dist.Store | None = None
        self.closed = threading.Event()
        self._place = host, port

    def run(self) -> None:
        while not self.closed.wait(KNOCK_S):
            if self.store is not None:
                continue
            with suppress(OSError, dist.DistError):
                socket.create_connection(self._place, timeout=CONNECT_S).close()
                timeout = timedelta(seconds=ANSWER_S)
                self.store = dist.TCPStore(*self._place, is_master=False, timeout=timeout)


@contextmanager
def _knocking(host: str, ports: Sequence[int]) -> Iterator[list[_Door]]:
    doors = [_Door(host, port) for port in ports]
    for door in doors:
        door.start()
    try:
        yield doors
    except Exception:  # the process may end now: a thread still inside C++ code would abort it (-6)
        _close(doors)
        deadline = time.monotonic() + ANSWER_S + CONNECT_S
        for door in doors:
            door.join(max(0.0, deadline - time.monotonic()))
        raise
    finally:
        _close(doors)


def _close(doors: list[_Door]) -> None:
    for door in doors:
        door.closed.set()


def _wait_for(
    host: str, port: int, late: Callable[[], bool], asked_to_stop: Callable[[], bool]
) -> dist.Store:
    with _knocking(host, [port]) as (door,):
        while door.store is None:
            if asked_to_stop():
                raise Stopped
            if late():
                raise EndedByOthers(f"the launcher keeps no store at {host}:{port}")
        return door.store


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""
