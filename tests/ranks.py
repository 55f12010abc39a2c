"""Run a test's function on several gloo ranks, each a process of its own.

``run_ranks(function, world_size, key=value, ...)`` calls ``function(world, key=value, ...)`` on
every rank and returns what each returned (JSON values). If a rank fails, the others are killed and
its traceback is the test's failure; nothing outlives ``TIMEOUT`` seconds.
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 180
ROOT = Path(__file__).resolve().parent.parent


def run_ranks(function: Callable[..., Any], world_size: int, **arguments: Any) -> list[Any]:
    """See the module's docstring; ``function`` is a module-level function of a test file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, function.__code__.co_filename, function.__name__]
        ranks = []
        for rank in range(world_size):
            env = os.environ | {
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            }
            errors = open(Path(folder) / f"{rank}.err", "w+")  # noqa: SIM115
            full = [*command, json.dumps(arguments), str(Path(folder) / f"{rank}.json")]
            ranks.append((subprocess.Popen(full, env=env, stderr=errors), errors))
        try:
            _wait(ranks)
        finally:
            for process, errors in ranks:
                process.kill()
                process.wait()
                errors.close()
        return [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(world_size)]


def _wait(ranks: list[tuple[subprocess.Popen, Any]]) -> None:
    deadline = time.monotonic() + TIMEOUT
    running = set(range(len(ranks)))
    while running:
        for rank in sorted(running):
            process, errors = ranks[rank]
            status = process.poll()
            if status is None and time.monotonic() < deadline:
                continue
            errors.seek(0)
            if status is None:
                raise AssertionError(f"rank {rank} did not end in {TIMEOUT} s\n{errors.read()}")
            if status != 0:
                raise AssertionError(f"rank {rank} exited with {status}\n{errors.read()}")
            running.discard(rank)
        time.sleep(0.02)


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
