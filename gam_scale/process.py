"""A process by more than its number, which another one has once it has ended."""

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """One process of one host, as a file keeps it."""

    pid: int
    host: str
    boot: str = ""
    """Of the host when it started; empty where the system does not tell, outside Linux."""
    started: int = 0
    """When, in ticks since that boot: no later process with its number has it too."""

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The process that has this number here now; None where there is none that runs."""
        host = socket.gethostname()
        if not os.path.exists("/proc/self/stat"):
            return cls(pid, host)
        with contextlib.suppress(OSError, ValueError):  # it ends just now
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            # proc(5), from the third field on: the name before it, in brackets, may hold anything.
            # psutil tells when it started by the clock, which somebody may set meanwhile.
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
            state, *fields = text.rpartition(")")[2].split()
            return cls(pid, host, boot, int(fields[18])) if state not in "ZX" else None
        return None

    def is_alive(self) -> bool:
        """Whether it runs still, on this host; false where that cannot be told."""
        return bool(self.boot) and Process.of(self.pid) == self

    def send(self, number: signal.Signals) -> bool:
        """Signal it, and nothing else, whatever ends meanwhile; false where it is not there."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid) if self.is_alive() else None
            if handle is not None:
                try:
                    if self.is_alive():  # so the handle is not that of a later one with its number
                        signal.pidfd_send_signal(handle, number)
                        return True
                finally:
                    os.close(handle)
        return False
