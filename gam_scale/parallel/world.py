"""This process's place among a job's ranks, whichever launcher started it, and their mesh."""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from gam_scale.config import ParallelConfig
from gam_scale.config.axes import AXES, Axes, Place
from gam_scale.environment import number, tasks_here
from gam_scale.errors import UserError
from gam_scale.files import allow_many_files
from gam_scale.hardware.memory import keep_freed_memory
from gam_scale.hardware.processor import cpu_threads
from gam_scale.parallel.deadline import deadline
from gam_scale.parallel.device import gpu_of, on_apple_gpu, on_gpus
from gam_scale.parallel.meeting import PORTS, meet

_BEFORE: dict[str, str | None] = {}
"""Former values of the environment variables that :func:`start` has set; None: it was not set."""
_HELD: list[Callable[[], object]] = []
"""Functions that give back what engines hold beyond their run."""
_HAS_MET = False
"""Whether this process has been in a group of several ranks."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""The variable by which torchrun says that its agent keeps the store where ranks meet."""
ABANDON_S = 60.0
"""Seconds that a GPU may take to give up what it waits for."""
PATIENCE = 10
"""A collective's time-out as a multiple of the watchdog's. The watchdog thus ends a job first; it
knows whether the missing ranks make progress elsewhere."""


@dataclass(frozen=True)
class World:
    """This process's place in the job, and the device it computes on.

    Attributes:
        arranged_as: the axes that :meth:`arranged` has set; None before that.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    arranged_as: Axes | None = None

    def arranged(self, parallel: ParallelConfig) -> "World":
        """Return the same rank in the grid that a run's engine and its cut sequences need.

        Raises:
            UserError: see :meth:`Axes.of`.
        """
        return replace(self, arranged_as=Axes.of(parallel, self.world_size))

    @property
    def axes(self) -> Axes:
        """The grid of all ranks; until they are arranged, all are replicas."""
        return self.arranged_as or Axes(replicate=self.world_size)

    @property
    def place(self) -> Place:
        """This rank's coordinates in the grid."""
        return self.axes.place(self.rank)

    @property
    def reader(self) -> int:
        """Which of the ``axes.readers`` shares of each batch this rank reads, wholly or partly."""
        return self.axes.reader(self.rank)

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The ranks as torch knows them, with a group along each of :data:`AXES`.

        All ranks must ask for it together the first time, when its groups are made.
        """
        return init_device_mesh(self.device.type, self.axes.sizes, mesh_dim_names=AXES)

    @cached_property
    def sharding_mesh(self) -> DeviceMesh:
        """The mesh that an engine shards over: (replicate, holders), see :attr:`Axes.holders`.

        Like :attr:`mesh`, all ranks must ask for it together the first time.
        """
        axes, names = self.axes, ("replicate", "shard")
        if axes.context == 1:
            return self.mesh[names]
        holders, _ = dist.new_subgroups_by_enumeration(axes.groups("shard", "context"))
        return DeviceMesh.from_group(
            [self.mesh.get_group("replicate"), holders],
            self.device.type,
            mesh=torch.arange(axes.world_size).view(axes.replicate, axes.holders),
            mesh_dim_names=names,
        )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once for all ranks."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return each value summed over all ranks, along every axis, in float64."""
        if self.world_size == 1:
            return list(values)
        # In CPU memory, where gloo adds them even in a job on GPUs: no GPU is waited for.
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals)
        return totals.tolist()

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true on any rank; every rank gets the same answer."""
        return self.sum(float(flag))[0] > 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum ``tensor`` over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)


def start(
    device: str,
    job: str = "",
    timeout_s: float = 1800.0,
    asked_to_stop: Callable[[], bool] = lambda: False,
    engine: str = "torch",
) -> World:
    """Join the job's process group, as set up by deepspeed, torchrun, srun or no launcher at all.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        job: a name that the job's ranks share and no other job has, such as its run directory.
        timeout_s: seconds for all ranks to come; see also :data:`PATIENCE`.
        asked_to_stop: returns whether this process was asked to stop while it waits for them.
        engine: the engine that is to run: not all know Apple's GPUs.

    Raises:
        UserError: a GPU is asked for, or given to this job, and torch sees none, or too few.
        EndedByOthers: a rank did not come.
        Stopped: a rank was asked to stop before all had come.
    """
    allow_many_files()
    use_cuda = on_gpus(device, os.environ)
    place = launcher_environment(os.environ)
    _announce(place)
    rank, world_size = int(place["RANK"]), int(place["WORLD_SIZE"])
    local_rank, local_size = int(place["LOCAL_RANK"]), int(place["LOCAL_WORLD_SIZE"])
    if use_cuda:
        where = torch.device("cuda", gpu_of(local_rank, local_size, os.environ))
        torch.cuda.set_device(where)
        _announce({"LOCAL_RANK": str(where.index)})  # DeepSpeed takes it for the GPU's number
    else:
        on_apples = on_apple_gpu(device, engine, world_size)
        where = torch.device("mps" if on_apples else "cpu")
    # The same number of threads however a run is launched, so that additions keep their order. In
    # a job on GPUs they work on offloaded state and on what is saved.
    torch.set_num_threads(cpu_threads(local_size))
    keep_freed_memory()
    if not dist.is_initialized():
        backend = "cuda:nccl,cpu:gloo" if use_cuda else "gloo"
        if world_size == 1:  # nobody to meet: no port that something else might take meanwhile
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            _be_patient(min(PATIENCE * timeout_s, 1e7))
            where_to = place["MASTER_ADDR"], int(place["MASTER_PORT"])
            agent_keeps_store = os.environ.get(AGENT_STORE) == "True"
            me = rank, world_size
            store = meet(
                *where_to, job, *me, timeout_s, asked_to_stop, agent_keeps_store=agent_keeps_store
            )
            store.set_timeout(c10d.default_pg_timeout)
            # Given the device, NCCL connects all ranks now, not in each group's first collective,
            # and a barrier need not guess the device. But a mesh then splits the group, which in
            # torch 2.13 ends a process with a segmentation fault if it has had a gloo group before.
            global _HAS_MET
            known = where if use_cuda and not _HAS_MET else None
            _HAS_MET = True
            # The watchdog needs the group. Until it is there, a rank that ends, or a wrong network
            # interface, would leave the others in NCCL for as long as they are patient.
            with deadline(timeout_s) if use_cuda else nullcontext():
                dist.init_process_group(
                    backend, store=store, rank=rank, world_size=world_size, device_id=known
                )
    return World(rank, world_size, local_rank, local_size, where)


def _announce(place: Mapping[str, str]) -> None:
    """Set environment variables, which torch and DeepSpeed read, until :func:`stop`."""
    for name, value in place.items():
        _BEFORE.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def at_release(give_back: Callable[[], object]) -> None:
    """Have :func:`release` call ``give_back``, once."""
    _HELD.append(give_back)


def release() -> None:
    """Have engines give back what they hold, so that this process can train another run.

    Call it only after a run that ended well: if a rank has died, a GPU may wait for it for ever.
    """
    while _HELD:
        _HELD.pop()()


def _be_patient(seconds: float) -> None:
    """Set the time-out of collectives for every group of ranks, whoever makes the group.

    Groups do not inherit a time-out, and NCCL's own is 600 s: the groups of DeepSpeed and of meshes
    would end a job before the watchdog has found out who is missing.
    """
    c10d.default_pg_timeout = c10d.default_pg_nccl_timeout = timedelta(seconds=seconds)


def abandon() -> None:
    """Leave the process group after a failure; :func:`stop` must follow.

    To destroy a group is to wait for its GPUs, and they may wait for a rank that is gone. So NCCL's
    groups are aborted instead.
    """
    if dist.is_initialized() and dist.get_world_size() > 1 and "nccl" in _backends():
        with deadline(ABANDON_S):
            c10d._abort_process_group()


def _backends() -> str:
    """Return the backends of the group of all ranks, such as ``cpu:gloo,cuda:nccl``."""
    return dist.get_backend_config()


def stop() -> None:
    """Leave the process group, and wait for threads that the interpreter's end could hurt."""
    _HELD.clear()
    if dist.is_initialized():
        _destroy_group()
        _wait_for_threads(5.0)
    while _BEFORE:  # processes that this one starts later are another job
        name, value = _BEFORE.popitem()
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _destroy_group() -> None:
    """Destroy the group, through DeepSpeed if it has joined: else it keeps groups for later."""
    deepspeed = sys.modules.get("deepspeed")
    if deepspeed is not None and deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()


def _wait_for_threads(timeout_s: float) -> None:
    """Wait until all other threads of this process are idle, at most ``timeout_s``.

    Engines keep references to the group, so that gloo's threads outlive it, and such a thread may
    be late in dropping a finished collective's tensors, for which it needs the interpreter's lock.
    An interpreter that is ending (before Python 3.14) ends the thread inside C++ code, which aborts
    the process: "terminate called without an active exception", status -6.
    """
    deadline, quiet = time.monotonic() + timeout_s, 0
    while quiet < 3 and time.monotonic() < deadline:
        time.sleep(0.001)  # releases the lock for whoever waits for it
        quiet = 0 if _running_threads() else quiet + 1


def _running_threads() -> bool:
    """Return whether another thread runs or is ready to run; always False outside Linux."""
    own = str(threading.get_native_id())
    # psutil knows the times of threads, but not their states.
    for thread in Path("/proc/self/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            state = thread.read_text().rpartition(")")[2].split()[0]
            if state not in "SZX" and thread.parent.name != own:
                return True
    return False


def launcher_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    deepspeed and torchrun set them (deepspeed names the local size LOCAL_SIZE); srun sets its own
    SLURM_* names; a plain ``python`` sets none and is a job of one rank.
    """
    if "RANK" in env and "WORLD_SIZE" in env:
        place = {"RANK": env["RANK"], "WORLD_SIZE": env["WORLD_SIZE"]}
        place["LOCAL_RANK"] = env.get("LOCAL_RANK", "0")
        size = env.get("LOCAL_WORLD_SIZE") or env.get("LOCAL_SIZE") or "1"
        place["LOCAL_WORLD_SIZE"] = size
    elif "SLURM_PROCID" in env and "SLURM_STEP_NUM_TASKS" in env:
        place = {"RANK": env["SLURM_PROCID"], "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"]}
        place["LOCAL_RANK"] = str(number(env, "SLURM_LOCALID"))
        place["LOCAL_WORLD_SIZE"] = str(tasks_here(env))
    else:
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    alone = place["WORLD_SIZE"] == "1"
    place["MASTER_ADDR"] = env.get("MASTER_ADDR") or _first_host(env, alone)
    place["MASTER_PORT"] = env.get("MASTER_PORT") or _port(env, alone)
    for name in place:
        if name != "MASTER_ADDR":
            number(place, name)
    if not 0 < int(place["MASTER_PORT"]) < 1 << 16:
        raise UserError(
            f"MASTER_PORT is {place['MASTER_PORT']} in the environment; expected 1 to 65535"
        )
    return place


def _first_host(env: Mapping[str, str], alone: bool) -> str:
    nodes = env.get("SLURM_STEP_NODELIST", "")
    if alone or not nodes:
        return "127.0.0.1"
    # `node[03-05,9]-a,other` -> `node03-a`: the first host is where rank 0 runs.
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    assert match is not None, nodes
    return "".join(part or "" for part in match.groups())


def _port(env: Mapping[str, str], alone: bool) -> str:
    if alone:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return str(probe.getsockname()[1])
    # The same on every rank, and below the ports that Linux hands out. Only jobs whose numbers are
    # a multiple of a thousand apart may try the same ports.
    return str(PORTS * (1024 + number(env, "SLURM_JOB_ID", 0) % 1000))
