"""The version of the code that makes a result."""

import subprocess
from pathlib import Path

from gam_scale import __version__


def code_version() -> str:
    """Return the package's version and, in a git checkout, its commit."""
    here = Path(__file__).resolve().parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__} ({described.stdout.strip()})"
