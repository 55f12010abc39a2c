"""Record of a check, written line by line, so that a process that dies loses no measurement."""

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

FATAL = 3
"""Exit status of a process whose GPU takes no more commands: other parts need another process."""
TRACE_LINES = 12
"""Number of a traceback's last lines that a record keeps."""


class Check:
    """What the parts of a check work with: a device, a folder, and a record.

    Attributes:
        device: the device that is measured.
        small: whether sizes are to be a CPU's, so that all takes seconds and no figure means much.
        folder: for traces and runs; a check may leave files there.
        ends: when the process is ended, on time.monotonic's clock.
    """

    def __init__(self, record: Path, device: torch.device, folder: Path, ends: float) -> None:
        self.device, self.folder, self.ends = device, folder, ends
        self.small = device.type == "cpu"
        self._record = record
        self.part = ""

    def pick(self, gpu: Any, cpu: Any) -> Any:
        """Return the size for a GPU, or on a CPU the one that takes no time there."""
        return cpu if self.small else gpu

    @property
    def seconds_left(self) -> float:
        """Seconds until this process is ended."""
        return self.ends - time.monotonic()

    def figure(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Record a number; if it is out of its bounds or not finite, the check has failed."""
        value = float(value)
        ok = math.isfinite(value)
        ok = (
            ok and (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        )
        bounds = {"at_most": at_most, "at_least": at_least}
        bounds = {key: bound for key, bound in bounds.items() if bound is not None}
        shown = value if math.isfinite(value) else str(value)  # JSON has no NaN
        self.write(figure=name, value=shown, unit=unit, ok=ok, **bounds)

    def note(self, name: str, text: object) -> None:
        """Record a text: a name, a version, a reason."""
        self.write(note=name, text=str(text))

    def fail(self, error: str) -> None:
        """Record what went wrong; the check goes on."""
        self.write(error=error)

    def write(self, **event: Any) -> None:
        """Write one line of the record."""
        line = json.dumps({"part": self.part} | event)
        with open(self._record, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self, parts: Mapping[str, Callable[["Check"], None]], leave_out: set[str]) -> int:
        """Call every part, record what it raises, and return the exit status."""
        self.write(parts=list(parts))
        for name, part in parts.items():
            if name in leave_out:
                continue
            self.part, begun = name, time.monotonic()
            self.write(begin=True)
            try:
                part(self)
            except Exception as error:
                lines = traceback.format_exc().strip().splitlines()
                self.write(
                    error=f"{type(error).__name__}: {error}"[:1000], trace=lines[-TRACE_LINES:]
                )
            alive = self._still_computes()
            self.write(end=True, seconds=round(time.monotonic() - begun, 2))
            if not alive:
                return FATAL
        return 0

    def _still_computes(self) -> bool:
        """Return whether the GPU takes commands; after an illegal access it never does again."""
        if self.device.type != "cuda":
            return True
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            self.write(error=f"the GPU is lost to this process: {error}"[:1000])
            return False
        return True
