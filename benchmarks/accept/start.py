"""Run a check in a process of its own, and again without the part that ended it, until time is up.

This module uses only the standard library, since it must outlive whatever torch does.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.accept.catalogue import Entry

ROOT = Path(__file__).resolve().parents[2]
SHARE = 0.6
"""Share of a check's remaining time that one part may take while others wait."""
LEAST = 6.0
"""Fewest seconds for which a process is started: in less, torch would not even be imported."""
PATIENCE = 10.0
"""Seconds to wait for a process that was killed."""
TAIL = 1500
"""Number of last characters of its log that the error of a process that died has."""


def run_check(
    number: int, entry: Entry, device: str, out: Path, ends: float, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run one check and return its result, as a line of results.jsonl holds it.

    Args:
        number: the check's number, by which its files are named.
        entry: the check.
        device: value of --device.
        out: folder for the check's record, log and folder.
        ends: when the check has to be over, on time.monotonic's clock.
        tell: prints progress.
    """
    begun = time.monotonic()
    record, log, folder = (out / f"check{number}{end}" for end in (".jsonl", ".log", ""))
    record.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    error = ""
    while not error:
        left = [name for name, part in parts.items() if "status" not in part]
        if parts and not left:
            break
        seconds = ends - time.monotonic()
        if seconds < LEAST:
            error = "no time left"
            break
        status = _run_once(entry.module, device, (record, log, folder), seconds, parts, tell)
        error = _why_it_ended(status, parts, log, had=left)
    for part in parts.values():
        part.setdefault("status", "not run")
    sound = parts and not error and all(part["status"] == "ok" for part in parts.values())
    result = {"check": number, "title": entry.title, "status": "ok" if sound else "failed"}
    result["seconds"] = round(time.monotonic() - begun, 1)
    if error:
        result["error"] = error
    with contextlib.suppress(OSError):
        folder.rmdir()  # if the check left nothing there
    return result | {"parts": parts}


def _run_once(
    module: str,
    device: str,
    places: tuple[Path, Path, Path],
    seconds: float,
    parts: dict[str, dict[str, Any]],
    tell: Callable[[str], None],
) -> int | None:
    """Run one process, and add to ``parts`` what it records; return its exit status.

    The status is None if the process ran out of time and was ended.
    """
    record, log, folder = places
    command = [sys.executable, "-m", "benchmarks.accept.child", module, "--device", device]
    command += ["--record", str(record), "--folder", str(folder), "--seconds", f"{seconds:.1f}"]
    command += ["--leave-out", ",".join(name for name, part in parts.items() if "status" in part)]
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    offset = record.stat().st_size if record.exists() else 0
    ends, part_ends = time.monotonic() + seconds, float("inf")
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while True:
            status = process.poll()
            lines, offset = _lines(record, offset)
            for line in lines:
                if _take(line, parts, tell):
                    left = sum("status" not in part for part in parts.values())
                    allowed = (ends - time.monotonic()) * (SHARE if left > 1 else 1.0)
                    part_ends = time.monotonic() + allowed
            if status is not None:
                return status
            if time.monotonic() > min(ends, part_ends):
                return None
            time.sleep(0.05)
    finally:
        _end(process)


def _lines(record: Path, offset: int) -> tuple[list[dict], int]:
    """Return the whole lines that were written since ``offset``, and the new offset."""
    if not record.exists():
        return [], offset
    with open(record, "rb") as file:
        file.seek(offset)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


def _take(line: dict, parts: dict[str, dict[str, Any]], tell: Callable[[str], None]) -> bool:
    """Put a line of the record into its part, and return whether it begins a part."""
    for name in line.get("parts", ()):
        parts.setdefault(name, {"figures": [], "notes": {}, "errors": []})
    part = parts.get(line["part"])
    if part is None:
        return False
    if "figure" in line:
        kept = ("figure", "value", "unit", "ok", "at_most", "at_least")
        part["figures"].append({key: line[key] for key in kept if key in line})
    elif "note" in line:
        part["notes"][line["note"]] = line["text"]
    elif "error" in line:
        part["errors"].append(line["error"])
        if "trace" in line:
            part["trace"] = line["trace"]
    elif "begin" in line:
        part["begun"] = True
        tell(f"   {line['part']} ...")
        return True
    elif "end" in line:
        part["seconds"] = line["seconds"]
        sound = not part["errors"] and all(figure["ok"] for figure in part["figures"])
        part["status"] = "ok" if sound else "failed"
        del part["begun"]
    return False


def _why_it_ended(
    status: int | None, parts: dict[str, dict[str, Any]], log: Path, had: list[str]
) -> str:
    """Fail the part that was under way; if there was none, return why another try would not help.

    An empty result means that the parts left may be tried.
    """
    how = "ran out of time" if status is None else f"ended with status {status}"
    if status is not None and status < 0:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(-status).name}"
    for name, part in parts.items():
        if part.pop("begun", False):
            part["status"] = "failed"
            part["errors"].append(f"{how} in {name}: {_tail(log)}")
            return ""
    left = [name for name, part in parts.items() if "status" not in part]
    if not parts or (left and left == had):
        return f"the process {how} before any part began: {_tail(log)}"
    return ""


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")[-TAIL:]
    return ""


def _end(process: subprocess.Popen) -> None:
    """End the process and all processes that it started.

    A process that hangs in a driver cannot be ended; the later checks do not wait for it.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
