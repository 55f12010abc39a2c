"""A few seconds of checks on every rank, so that what would fail hours later fails at the start.

Each rank checks its own machine without raising an error. Then all ranks exchange what they found,
so that every rank ends with the same sentence, which names the failing rank and its host.
"""

import logging
import os
import platform
import shutil
import socket
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
import xxhash

import gam_scale
from gam_scale.data.shards import TokenSplit
from gam_scale.errors import UserError
from gam_scale.parallel.world import World
from gam_scale.train.links import all_reduce_rate, measure_links, slow_links

logger = logging.getLogger("gam_scale")

MB = 1e6
PROBE_BYTES = 4 << 20
"""Bytes written to the checkpoints' folder as a test."""
HASHING_S = 1.0
"""Seconds for hashing shards of the data, per rank: no further shard is begun after that."""
SHM_BYTES_PER_GPU = 32 << 20
"""Bytes of /dev/shm that NCCL takes for one rank's links; containers start with 64 MiB for all."""
FREE_GPU_SHARE = 0.8
"""If less of a GPU's memory is free at the start, another process is on the GPU."""
MAX_SKEW_S = 30.0
"""Seconds that clocks may differ: more confuses schedulers' and file systems' times."""


@dataclass
class RankCheck:
    """What one rank found on its own machine."""

    rank: int
    host: str
    versions: dict[str, str]
    clock: float
    problems: list[str] = field(default_factory=list)
    """Sentences without their subject, the rank: what it found, and what would be accepted."""
    write_bytes_per_s: float = 0.0
    hashed: int = 0
    """Number of shards whose content matches the manifest."""
    gpu: str = ""
    """Model of the rank's GPU; empty for CPUs."""


def preflight(
    world: World, checkpoints: Path, checkpoint_bytes: int, splits: Sequence[TokenSplit] = ()
) -> None:
    """Check all ranks; called by all of them.

    Args:
        checkpoints: the folder for the checkpoints.
        checkpoint_bytes: size of one checkpoint, from all ranks together.
        splits: the data; each rank hashes a few of its shards.

    Raises:
        UserError: on every rank alike, naming the ranks that cannot train and why.
    """
    start = time.monotonic()
    world.barrier()  # clocks are read at about the same time
    checks = _exchange(world, check_rank(world, checkpoints, checkpoint_bytes, splits))
    problems = [f"rank {f.rank} on {f.host} {text}" for f in checks for text in f.problems]
    problems += differing_versions(checks) + skewed_clocks(checks)
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" * (len(problems) > 4))
        raise UserError(f"{shown} (parallel.preflight checks this)")
    rate, links = all_reduce_rate(world), measure_links(world, [f.host for f in checks])
    logger.info(
        "preflight of %d rank(s) on %d host(s) in %.1f s: %d shard(s) hashed by each, "
        "checkpoints at %.0f MB/s%s%s",
        world.world_size,
        len({f.host for f in checks}),
        time.monotonic() - start,
        min(f.hashed for f in checks),
        min(f.write_bytes_per_s for f in checks) / MB,
        f", all-reduce at {rate / MB:.0f} MB/s" if rate else "",
        f", the slowest link: {min(links, key=lambda link: link.bytes_per_s)}" if links else "",
    )
    if differ := differing_gpus(checks):
        logger.warning("%s", differ)
    for link in slow_links(links):
        logger.warning("%s, less than a quarter of what like links reach", link)


def check_rank(
    world: World, checkpoints: Path, checkpoint_bytes: int, splits: Sequence[TokenSplit] = ()
) -> RankCheck:
    """Check this rank's own machine."""
    here = RankCheck(world.rank, socket.gethostname(), versions(), time.time())
    here.problems += _device(world.device) + _shared_memory(world)
    if world.device.type == "cuda" and not here.problems:
        here.gpu = torch.cuda.get_device_name(world.device)
    problems, here.write_bytes_per_s = _disk(checkpoints, world, checkpoint_bytes)
    here.problems += problems
    problems, here.hashed = _shards(splits, world)
    here.problems += problems
    return here


def versions() -> dict[str, str]:
    """Return the versions that must agree on all ranks; the code's is a hash of its files."""
    digest = xxhash.xxh3_64()
    root = Path(gam_scale.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "the code of gam_scale": digest.hexdigest(),
    }


def _version(package: str) -> str:
    """Return the version of a package that not every system has."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def differing_versions(checks: list[RankCheck]) -> list[str]:
    """Return a sentence for each rank and package whose version differs from most ranks'."""
    problems = []
    for name in checks[0].versions:
        common = Counter(f.versions[name] for f in checks).most_common(1)[0][0]
        problems += [
            f"rank {f.rank} on {f.host} has {name} {f.versions[name]}; expected {common} as on "
            "the other ranks"
            for f in checks
            if f.versions[name] != common
        ]
    return problems


def differing_gpus(checks: list[RankCheck]) -> str:
    """Return a sentence if the ranks' GPUs are of several models, else nothing."""
    counts = Counter(f.gpu for f in checks).most_common()
    if len(counts) == 1:
        return ""
    return (
        f"the ranks have {', '.join(f'{n} x {name}' for name, n in counts)}: the slowest sets the "
        "pace, and copies of a parameter on several models of GPU may drift apart by rounding"
    )


def skewed_clocks(checks: list[RankCheck]) -> list[str]:
    """Return a sentence for each rank whose clock is over :data:`MAX_SKEW_S` off the median."""
    median = sorted(f.clock for f in checks)[len(checks) // 2]
    return [
        f"rank {f.rank} on {f.host} has a clock {f.clock - median:+.0f} s off; expected at most "
        f"{MAX_SKEW_S:.0f} s"
        for f in checks
        if abs(f.clock - median) > MAX_SKEW_S
    ]


def _device(device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    try:
        ones = torch.ones(256, 256, device=device)
        right = bool(torch.all(ones @ ones == 256))
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        return [f"cannot compute on {device}: {str(error).splitlines()[0]}; expected a sound GPU"]
    problems = [] if right else [f"gets wrong sums from {device}; expected a sound GPU"]
    if free < FREE_GPU_SHARE * total:
        problems.append(
            f"finds {free / 2**30:.1f} of {total / 2**30:.1f} GiB free on {device}; expected no "
            "other process on it"
        )
    return problems


def _shared_memory(world: World) -> list[str]:
    if world.device.type != "cuda" or world.local_world_size == 1:
        return []
    size = shutil.disk_usage("/dev/shm").total
    wanted = SHM_BYTES_PER_GPU * world.local_world_size
    if size >= wanted:
        return []
    return [
        f"has a /dev/shm of {size >> 20} MiB; expected at least {wanted >> 20} for "
        f"{world.local_world_size} GPUs (containers: --shm-size)"
    ]


def _disk(folder: Path, world: World, checkpoint_bytes: int) -> tuple[list[str], float]:
    """Return problems with the checkpoints' folder, and the bytes per second written there."""
    probe = folder / f".preflight.{world.rank}.tmp"  # a leftover's name, which a start removes
    try:
        free = shutil.disk_usage(folder).free
        start = time.monotonic()
        with open(probe, "wb") as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
            os.fsync(file.fileno())
        rate = PROBE_BYTES / (time.monotonic() - start)
    except OSError as error:
        return [f"cannot write {folder} ({error.strerror}); expected a folder that it can"], 0.0
    finally:
        probe.unlink(missing_ok=True)
    if free < checkpoint_bytes:
        return [
            f"finds {free / 1e9:.1f} GB free at {folder}; expected room for one more checkpoint, "
            f"{checkpoint_bytes / 1e9:.1f} GB"
        ], rate
    return [], rate


def _shards(splits: Sequence[TokenSplit], world: World) -> tuple[list[str], int]:
    """Hash shards for about a second, others on each rank; return problems and how many passed."""
    shards = [(split, i) for split in splits for i in range(len(split.info.shards))]
    first = world.rank * len(shards) // world.world_size
    deadline, hashed = time.monotonic() + HASHING_S, 0
    for split, i in shards[first:] + shards[:first]:
        try:
            hashed += split.verify_local(i)
        except UserError as error:
            return [f"finds damaged data: {error}"], hashed
        if time.monotonic() > deadline:
            break
    return [], hashed


def _exchange(world: World, own: RankCheck) -> list[RankCheck]:
    if world.world_size == 1:
        return [own]
    checks: list[RankCheck | None] = [None] * world.world_size
    dist.all_gather_object(checks, own)
    return [each for each in checks if each is not None]
