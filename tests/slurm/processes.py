"""Processes of this machine, looked at from outside; see proc(5)."""

import os
import re
from collections.abc import Iterable
from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the children of a process; none if it has ended."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in file.read_text().split()] if file.exists() else []


def beside(pid: int) -> list[int]:
    """Return all processes in the PID namespace of ``pid``, as the machine numbers them."""
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(folder / "ns" / "pid") == namespace:
                members.append(int(folder.name))
        except OSError:
            continue  # ended meanwhile
    return members


def with_word(pids: Iterable[int], word: str) -> list[int]:
    """Return those with a word that ends in ``word`` among the first four of the command line."""
    found = []
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(each.endswith(word.encode()) for each in words[:4]):
            found.append(pid)
    return found


def is_stopped(pid: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP."""
    return re.search(r"^State:\s+T", _status(pid), re.M) is not None


def was_sent(pid: int, number: int) -> bool:
    """Return whether a stopped process was sent a signal, or runs again, or has ended."""
    if not is_stopped(pid):
        return True
    masks = re.findall(r"^(?:SigPnd|ShdPnd):\s+(\w+)", _status(pid), re.M)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""  # it has ended
