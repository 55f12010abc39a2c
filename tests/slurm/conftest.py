"""A Slurm of four nodes, started once for the tests marked ``slurm``; else they are skipped."""

from collections.abc import Iterator

import pytest
from slurm.cluster import Cluster, why_not
from slurm.jobs import end_all, submit

from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import Goodput, goodput

DRILLS: dict[str, Goodput] = {}
"""The goodput of each test's run, for the table at the end."""
ROW = "{:<50}{:>7}{:>9}{:>9}{:>12}{:>13}"


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """The running cluster; see :class:`Cluster`."""
    reason = why_not()
    if reason:
        pytest.skip(f"no Slurm tests: {reason}")
    with Cluster(4) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(slurm, prepared_set, tmp_path_factory) -> dict[int, float]:
    """Losses, by step, of a run that nothing interrupted."""
    job = submit(slurm, prepared_set, tmp_path_factory.mktemp("undisturbed"))
    assert job.finish() == "COMPLETED" and job.restarts == 0, job.said()
    DRILLS["undisturbed"] = goodput(RunDir(job.run))
    return job.losses()


@pytest.fixture
def start(slurm, prepared_set, tmp_path, request):
    """``start(*sbatch_options)`` submits the run; jobs left at the test's end are cancelled."""
    jobs = []

    def begin(*options, folder=tmp_path, **more):
        jobs.append(submit(slurm, prepared_set, folder, *options, **more))
        return jobs[-1]

    yield begin
    end_all(slurm)
    if jobs and (found := goodput(RunDir(jobs[0].run))):
        DRILLS[request.node.name.removeprefix("test_")] = found


def pytest_terminal_summary(terminalreporter) -> None:
    """Print what each drill cost its run, as docs/cluster.md shows it."""
    if not DRILLS:
        return
    terminalreporter.section("goodput and time to resume on the test Slurm")
    heads = ("drill", "starts", "wall", "goodput", "to resume", "steps again")
    terminalreporter.write_line(ROW.format(*heads))
    for name, found in DRILLS.items():
        again = sum(resume.steps_again for resume in found.resumes)
        resumed = found.resume_seconds
        terminalreporter.write_line(
            ROW.format(
                name,
                found.starts,
                f"{found.wall_seconds:.0f} s",
                f"{found.share:.1%}",
                "-" if resumed is None else f"{resumed:.0f} s",
                again,
            )
        )
