"""The folder of a report: a new report replaces an earlier one, and other files stay."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.files import put_in_place, read_regular

SUMMARY = "fit.json"
"""Name of the file with every figure and, under ``files``, a checksum of each other file."""


class ReportFolder:
    """The folder of a report, and the report's input files, which it must not replace."""

    def __init__(self, path: str | Path, inputs: Iterable[Path] = ()) -> None:
        self.path = Path(path)
        self.inputs = list(inputs)

    def check(self, names: Iterable[str]) -> None:
        """Refuse files that cannot be written or would replace an input.

        Args:
            names: names of the files to be written.

        Raises:
            UserError: a file is refused; the message says which, and why.
        """
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"--out {self.path}: {there} is not a folder; expected one, or none")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"--out {self.path} cannot be written: {there} is protected")
        for name in names:
            path = self.path / name
            if not path.exists():
                continue
            if not path.is_file():
                raise UserError(f"{path} is not a file; expected a report's, or none")
            for given in self.inputs:
                if given.exists() and path.samefile(given):
                    raise UserError(
                        f"--out {self.path} would replace {given}, which the report is made of; "
                        "expected another folder, or another name of that file"
                    )

    def replace(self, files: Mapping[str, bytes], summary: Mapping[str, Any]) -> list[Path]:
        """Write a report in place of an earlier one.

        All files are on the disk before any is moved to its name. Files of an earlier report that
        this one does not have are removed, if they are still what that report wrote.

        Args:
            files: contents by name.
            summary: content of :data:`SUMMARY`, to which checksums of the files are added.

        Returns:
            Paths of the files written, the summary first.

        Raises:
            UserError: a file cannot be written, or would replace an input.
        """
        sums = {name: _checksum(data) for name, data in files.items()}
        whole = json.dumps({**summary, "files": sums}, indent=2, ensure_ascii=False) + "\n"
        contents = {SUMMARY: whole.encode(errors="backslashreplace"), **files}
        self.check(contents)
        partials = {name: self.path / f".{name}.{os.getpid()}.tmp" for name in contents}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stale = self._stale(files)
            for name, data in contents.items():
                partials[name].write_bytes(data)
            for path in stale:
                path.unlink()
            for name, partial in partials.items():
                put_in_place(partial, self.path / name)
        except OSError as error:
            raise UserError(f"--out {self.path} cannot be written: {error.strerror}") from None
        finally:
            for partial in partials.values():
                partial.unlink(missing_ok=True)
        return [self.path / name for name in contents]

    def _stale(self, files: Mapping[str, bytes]) -> list[Path]:
        """Return the unchanged files of the earlier report that ``files`` does not replace."""
        try:
            written = json.loads(read_regular(self.path / SUMMARY))["files"].items()
        except (UserError, ValueError, KeyError, TypeError, AttributeError):
            return []
        paths = [
            (self.path / name, checksum)
            for name, checksum in written
            if name not in files and Path(name).name == name
        ]
        return [
            path
            for path, checksum in paths
            if path.is_file()
            and _checksum(path.read_bytes()) == checksum
            and not any(given.exists() and path.samefile(given) for given in self.inputs)
        ]


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
