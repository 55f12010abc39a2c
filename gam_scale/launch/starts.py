"""How many starts of a job in a row ended before a run directory was opened."""

from collections.abc import Sequence
from pathlib import Path

from gam_scale.files import append_regular, read_regular
from gam_scale.run.directory import RunDir
from gam_scale.run.restarts import restart_number


class Starts:
    """Counts the starts of a job in a row that end before one of its run directories is opened.

    Every start that opens one changes its restarts.json; slurm/common.sh goes by that, too.

    Args:
        file: where they are counted.
        runs: the directories of the job's runs.
    """

    def __init__(self, file: Path, runs: Sequence[str]) -> None:
        self._file, self._notes = file, [RunDir(run).restarts for run in runs]
        self._before = self._read()

    def unopened(self) -> int:
        """Return the count, this failed start included; all its ranks may call this."""
        if self._read() != self._before:
            self._file.unlink(missing_ok=True)
            return 0
        with append_regular(self._file) as file:
            file.write(f"{restart_number()}\n".encode())
        return len(set(read_regular(self._file).split()))

    def _read(self) -> list[bytes]:
        return [read_regular(note) if note.exists() else b"" for note in self._notes]
