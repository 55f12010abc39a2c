"""What a check writes down, line by line, so that a process that dies loses nothing it measured."""

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

FATAL = 3
"""Exit status of a process whose GPU takes no more commands: the parts left need another one."""
TRACE_LINES = 12
"""Of a traceback that a record keeps, its last ones."""


class Check:
    """The hand of one check's process: a device, a folder, and a record.

    Attributes:
        device: what is measured.
        small: sizes are to be a CPU's, seconds in all: no figure means anything then.
        folder: for traces and runs; a check may leave files there.
        ends: when the process is ended, on time.monotonic's clock.
    """

    def __init__(self, record: Path, device: torch.device, folder: Path, ends: float) -> None:
        self.device, self.folder, self.ends = device, folder, ends
        self.small = device.type == "cpu"
        self._record = record
        self.part = ""

    def pick(self, gpu: Any, cpu: Any) -> Any:
        """The size for a GPU, or the one that a CPU can do in no time."""
        return cpu if self.small else gpu

    @property
    def seconds_left(self) -> float:
        """Until this process is ended."""
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
        """Write a number down; out of its bounds, or not finite, the check has failed."""
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
        """Write a word down: a name, a version, a reason."""
        self.write(note=name, text=str(text))

    def fail(self, error: str) -> None:
        """Say what went wrong; the check goes on."""
        self.write(error=error)

    def write(self, **event: Any) -> None:
        """One line of the record."""
        line = json.dumps({"part": self.part} | event)
        with open(self._record, "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def run(self, parts: Mapping[str, Callable[["Check"], None]], leave_out: set[str]) -> int:
        """Call every part; what one raises is written down. The exit status."""
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
        """Whether the GPU takes commands: after an illegal access it never does again."""
        if self.device.type != "cuda":
            return True
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            self.write(error=f"the GPU is lost to this process: {error}"[:1000])
            return False
        return True
