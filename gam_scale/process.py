"""Identify a process by more than its number, which a later process may get."""

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process of one host, as it is recorded in a file."""

    pid: int
    host: str
    boot: str = ""
    """The id of the host's boot in which it started; empty outside Linux, which has none."""
    started: int = 0
    """Its start, in ticks since that boot: a later process with its number started later."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Return the process that has this number here now; None if no such process runs."""
        host = socket.gethostname()
        if not os.path.exists("/proc/self/stat"):
            return cls(pid, host)
        with contextlib.suppress(OSError, ValueError):  # it is just ending
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            # proc(5), from the third field on: the name before it, in brackets, may hold anything.
            # psutil gives the start by the host's clock, which somebody may set meanwhile.
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            state, *fields = text.rpartition(")")[2].split()
            return cls(pid, host, boot, int(fields[18])) if state not in "ZX" else None
        return None

    def is_alive(self) -> bool:
        """Return whether the process still runs, on this host; False if that cannot be told."""
        return bool(self.boot) and Process.of(self.pid) == self

    def send(self, number: signal.Signals) -> bool:
        """Signal this process and no other, even if it ends meanwhile; False if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid) if self.is_alive() else None
            if handle is not None:
                try:
                    if self.is_alive():  # so the handle is not of a later process with its number
                        signal.pidfd_send_signal(handle, number)
                        return True
                finally:
                    os.close(handle)
        return False
