"""Run a test's function on several gloo ranks, each a process of its own (see warm.py).

``run_ranks(function, world_size, key=value, ...)`` calls ``function(world, key=value, ...)`` on
every rank and returns the list of their results (JSON values). If ranks fail, the test fails with
their tracebacks and the others are killed; no rank outlives ``TIMEOUT`` seconds.
"""

import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from warm import PATH, Program, program

TIMEOUT = 180
GRACE = 15


def run_ranks(function: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
    """See the module's docstring; ``function`` is a module-level function of a test file."""
    # The ranks meet in a store of this process, as under torchrun. A port chosen here for rank 0
    # to open could be taken before it does.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        command = [__file__, function.__code__.co_filename, function.__name__]
        ranks = []
        for rank in range(world_size):
            env = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": PATH,
            }
            full = [*command, json.dumps(arguments), Path(folder) / f"{rank}.json"]
            ranks.append(program(full, env=env, number=rank))
        try:
            _wait(ranks)
        finally:
            for each in ranks:
                each.kill()
                print(each.out, end="")
        return [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(world_size)]


def _wait(ranks: list[Program]) -> None:
    """Wait until all have ended, or ``GRACE`` seconds after one failed; report the failures.

    A failed rank's peers see a closed connection. Their failures may be noticed first, and must
    not hide the rank that knows why.
    """
    deadline = time.monotonic() + TIMEOUT
    running = ranks
    failed = False
    while running and time.monotonic() < deadline:
        time.sleep(0.02)
        running = [each for each in running if each.poll() is None]
        if not failed and any(each.returncode for each in ranks):
            failed = True
            deadline = min(deadline, time.monotonic() + GRACE)
    reports = []
    for rank, each in enumerate(ranks):
        if each.returncode == 0 or (failed and each.returncode is None):
            continue
        end = f"exited with {each.returncode}" if failed else f"did not end in {TIMEOUT} s"
        reports.append(f"rank {rank} {end}\n{each.err}")
    assert not reports, "\n".join(reports)


def _child(file: str, name: str, arguments: str, result: str) -> None:
    from gam_scale.parallel import world

    spec = importlib.util.spec_from_file_location("test_module", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        value = getattr(module, name)(world.start("cpu"), **json.loads(arguments))
    finally:
        world.stop()
    Path(result).write_text(json.dumps(value))


if __name__ == "__main__":
    _child(*sys.argv[1:])
