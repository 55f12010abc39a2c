"""A pytest plugin that divides the tests among several processes, file by file.

Run ``python -m pytest --turns FILE`` in each process, all with the same options. A process that is
free takes the next test file as its turn, so that all end at about the same time; a file's tests
and fixtures stay in one process. FILE holds the number of turns taken.
"""

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WHOLE = ("slurm",)
"""Folders that are one turn, so that their cluster is started only once."""
FIRST = (
    "slurm",
    "plan/test_engines.py",
    "scaling/test_sweep.py",
    "tools/test_reproduce_paper.py",
    "train/test_carry.py",
    "parallel/test_resume.py",
    "parallel/test_engines.py",
    "parallel/test_context.py",
    "train/test_layers.py",
    "attack/test_attack.py",
    "tools/test_launchers.py",
    "train/test_pretrain.py",
    "train/test_stopping.py",
    "parallel/test_meeting.py",  # leaves threads that wait for ranks, for some seconds
)
"""Tests of a minute or more come first: none may begin when the other processes are ending."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file of turns."""
    parser.addoption("--turns", type=Path, metavar="FILE", help="see tests/turns.py")


def pytest_configure(config: pytest.Config) -> None:
    """Register the hooks if ``--turns`` is given."""
    if count := config.option.turns:
        config.pluginmanager.register(Turns(count))


class Turns:
    """The hooks of a process that takes turns."""

    def __init__(self, count: Path) -> None:
        self._count = count

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run tests as pytest's own loop does, but only those of this process's turns."""
        if session.testsfailed and not session.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        if session.config.option.collectonly:
            return True
        items = self._taken(turns(session.items))
        item = next(items, None)
        while item is not None:
            following = next(items, None)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            item = following
        return True

    def _taken(self, turns: list[list[pytest.Item]]) -> Iterator[pytest.Item]:
        """Yield the tests of one turn after another, taking each turn as late as possible."""
        while (number := self._next()) < len(turns):
            yield from turns[number]

    def _next(self) -> int:
        """Take the next turn and return its number, counted from 0 over all processes."""
        with open(self._count, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = int(file.read() or 0)
            file.seek(0)
            file.write(str(number + 1))
        return number


def turns(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    """Group tests into turns, each a file or a whole folder, with the longest ones first."""
    found: dict[str, list[pytest.Item]] = {name: [] for name in FIRST}
    for item in items:
        path = item.path.relative_to(TESTS)
        name = path.parts[0] if path.parts[0] in WHOLE else path.as_posix()
        found.setdefault(name, []).append(item)
    return [of_one for of_one in found.values() if of_one]
