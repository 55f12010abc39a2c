"""How a command line ends: exit codes and what is printed."""

import errno
import subprocess
import sys

import pytest

from gam_scale.cli import run
from gam_scale.errors import UserError


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (UserError("x is 3; expected 4"), 2, "error: x is 3; expected 4\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "No space", "/data/f"), 2, "error: /data/f: no space left"),
        (OSError(errno.ENOSPC, "No space"), 2, "error: no space left"),
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
