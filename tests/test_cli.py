"""How a command line ends: exit codes and what is printed."""

import errno
import subprocess
import sys

import pytest

from gam_scale.cli import Parser, count, number, run
from gam_scale.errors import EndedByOthers, MistakeElsewhere, UserError


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("x is 3; expected 4"), 2, "error: x is 3; expected 4\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (EndedByOthers("rank 1 is gone"), 1, "error: rank 1 is gone\n"),
        (MistakeElsewhere("rank 0 failed"), 2, "error: rank 0 failed\n"),
        (OSError(errno.ENOSPC, "No space", "/data/f"), 2, "error: /data/f: no space left"),
        (OSError(errno.ENOSPC, "No space"), 2, "error: no space left"),
        (MemoryError(), 2, "error: memory ran out"),
        (RuntimeError("alloc: can't allocate memory: 9 bytes"), 2, "error: memory ran out"),
    ],
)
def test_known_endings(capsys, error, status, printed):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run(main)
    assert end.value.code == status
    stderr = capsys.readouterr().err
    assert stderr.startswith(printed)
    assert stderr.count("\n") == 1


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_status_is_what_main_returns(returned, status):
    with pytest.raises(SystemExit) as end:
        run(lambda: returned)
    assert end.value.code == status


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "I/O error")])
def test_defects_keep_their_traceback(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run(main)


def test_a_closed_pipe_ends_quietly():
    code = "from gam_scale.cli import run; run(lambda: print('x' * 100 + '\\n' * 1000000))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_a_path_that_cannot_be_used_is_one_sentence(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        run(lambda: (tmp_path / "no" / "file").write_text("x"))
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/no/file: no such file") and error.count("\n") == 1


FLAGS = Parser()
FLAGS.add_argument("--steps", type=count(at_least=0, at_most=9))
FLAGS.add_argument("--rate", type=number(above=0, at_most=2))
FLAGS.add_argument("--kind", choices=["a", "b"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--steps", "-1"], "--steps is -1; expected a whole number, at least 0, at most 9"),
        (["--steps", "10"], "--steps is 10; expected"),
        (["--steps", "1.5"], "--steps is 1.5; expected"),
        (["--steps", "1" * 5000], "--steps is 111"),
        (["--rate", "0"], "--rate is 0; expected a finite number, more than 0, at most 2"),
        (["--rate", "nan"], "--rate is nan; expected"),
        (["--rate", "1e999"], "--rate is 1e999; expected"),
        (["--kind", "c"], "--kind: invalid choice: 'c'"),
        (["--kind"], "--kind: expected one argument"),
        (["--ste", "1"], "unrecognized arguments: --ste"),
        (["\ud800" * 900], "unrecognized arguments: \\ud800"),
    ],
)
def test_a_flag_is_refused_in_one_sentence(typed, said):
    with pytest.raises(UserError) as caught:
        FLAGS.parse_args(typed)
    assert str(caught.value).startswith(said) and len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) <= 1200


def test_flags_within_their_bounds():
    args = FLAGS.parse_args(["--steps", "0", "--rate", "2"])
    assert (args.steps, args.rate) == (0, 2.0)


def test_a_command_may_open_as_many_files_as_the_system_allows():
    code = "import resource; from gam_scale import cli\n"
    code += "cli.run(lambda: print(*resource.getrlimit(resource.RLIMIT_NOFILE)))"
    for limit, expected in (("-Sn 256", "300 300"), ("-n 300", "300 300")):
        shell = f"ulimit -n 300; ulimit {limit}; exec {sys.executable} -c '{code}'"
        done = subprocess.run(["bash", "-c", shell], text=True, capture_output=True)
        assert done.stdout.strip() == expected, done.stderr
