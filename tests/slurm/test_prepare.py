"""tools/prepare_data.py --submit on a real Slurm: the same bytes from requeued and killed tasks."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from slurm.cluster import wait_until
from slurm.jobs import ROOT, end_all

from gam_scale.data.filters import Filters
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source
from gam_scale.data.tokenizer_training import train_tokenizer
from slurm import processes

pytestmark = pytest.mark.slurm
PATIENCE = 120.0
SMALL_PARTS = (
    "import runpy, sys; sys.path.insert(0, 'tools'); from gam_scale.preparation import parts; "
    "parts.PART_BYTES = 1; sys.argv[0] = 'prepare_data.py'; "
    "runpy.run_path('tools/prepare_data.py', run_name='__main__')"
)
"""The tool with every file as a part of its own, so that a stage has several tasks."""


class Command:
    """A running tools/prepare_data.py --submit, and its tasks on the cluster."""

    def __init__(self, slurm, out: Path, words: list[object]) -> None:
        self.slurm, self.folder = slurm, out.with_name(f".{out.name}.submitted")
        words = [*words, "--out", out, "--submit", "--tasks", 3, "--cpus-per-task", 1]
        self._process = subprocess.Popen(
            [sys.executable, "-c", SMALL_PARTS, *map(str, words)],
            cwd=ROOT,
            env=slurm.env | {"OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def held(self, stage: str) -> tuple[str, str, list[int]]:
        """Stop a task of ``stage`` that has begun; return its job, node and processes."""
        name = f"prepare-{stage}"

        def tasks() -> list[list[str]]:
            said = self.slurm.run("squeue", "-h", "-r", "-t", "R", "-n", name, "-o", "%i %N")
            return [line.split() for line in said.splitlines()]

        def begun() -> list[str] | None:
            for job, node in tasks():
                log = next(self.folder.glob(f"jobs/{job}_0_log.out"), None)
                if log and "items are to be done" in log.read_text():
                    return [job, node]
            return None

        # A task first runs, while Python is loading, and later says in its log that it begins.
        wait_until(lambda: tasks() or self._process.poll() is not None, PATIENCE, name)
        wait_until(lambda: begun() or self._process.poll() is not None, PATIENCE, f"a task: {name}")
        job, node = begun() or pytest.fail(f"no task of {stage} at work: {self.said()}")
        found = processes.with_word(self.slurm._members(node), "submitit.core._submit")
        for pid in found:
            os.kill(pid, signal.SIGSTOP)
        return job, node, found

    def said(self) -> str:
        """Wait for its end and return all that it printed."""
        return self._process.communicate(timeout=PATIENCE)[0]

    @property
    def status(self) -> int:
        return self._process.wait(PATIENCE)


@pytest.fixture
def corpus(tmp_path):
    """Nine files, some equal, long enough to catch a task at work on them."""
    for number in range(9):
        lines = (f"line {i * (number % 7 + 1)} says {i * i} of {i % 17}\n" for i in range(40_000))
        (tmp_path / f"{number}.txt").write_text("".join(lines))
    train_tokenizer([(tmp_path / "0.txt").read_text()[:200_000]], tmp_path / "t.model", 290)
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_requeued_and_a_killed_task(slurm, corpus, tmp_path):
    texts, model, out = f"{corpus}/?.txt", corpus / "t.model", tmp_path / "set"
    words = ["--train", texts, "--tokenizer", model, "--deduplicate", "--max-repetition", 0.99]
    try:
        command = Command(slurm, out, words)
        job, _, found = command.held("measured")
        slurm.run("scancel", "--signal=USR2", job)  # as Slurm sends before the time limit
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: slurm.job(job)["Restarts"] == "1", PATIENCE, "a requeue")
        job, _, found = command.held("tokenised")
        done = command.folder / "tokenised"
        wait_until(lambda: list(done.glob("?????.json")), PATIENCE, "another task's work")
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        said = command.said()
        assert command.status == 1, said
        assert re.search(
            r"a task of tokenising failed with status 137: killed by SIGKILL; its log", said
        )
        assert "what is done stays, and the same command does the rest" in said
        assert not out.exists()
        before = len(list(done.glob("?????.json")))
        assert 0 < before < 9
        again = Command(slurm, out, words)
        said = again.said()
        assert again.status == 0, said
        assert f"tokenising: {9 - before} of 9 items are to be done" in said
        assert "measuring the text: 9 of" not in said
    finally:
        end_all(slurm)
    spec = PrepareSpec(
        tmp_path / "plain", [parse_source(texts)], tokenizer=model, filters=Filters(True, 0, 0.99)
    )
    assert prepare(spec).splits["train"].left_out == {"repeated": 2}
    assert contents(out) == contents(tmp_path / "plain")
    assert not list(tmp_path.glob(".set*"))
