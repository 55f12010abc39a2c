#!/usr/bin/env python3
"""Make .venv and install GAM Scale into it: `python3 tools/bootstrap.py [--extras all]`.

It uses the standard library alone. On a machine without an NVIDIA GPU it installs torch's CPU
build, never the CUDA build of several gigabytes; with a GPU, the ordinary CUDA build. On a login
node without a GPU, say `--torch cuda`.
"""

import argparse
import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "installed.json"
# PyTorch's own index of CPU builds, for Linux machines whose package index has CUDA builds only.
CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")


def main() -> None:
    """Create the environment, or do nothing if it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--extras", default="", help="extras of setup.cfg to install, such as all or hub,track"
    )
    parser.add_argument(
        "--torch",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="build of torch; auto: the one that is installed, else CUDA if there is an NVIDIA "
        "GPU, else CPU (default: auto)",
    )
    args = parser.parse_args()
    extras = {e for e in args.extras.split(",") if e}
    if sys.version_info < (3, 11):  # noqa: UP036 (it runs on whatever python3 there is)
        sys.exit(f"error: this is Python {sys.version.split()[0]}; expected 3.11 or later")
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    installed = _read_stamp()
    of_the_build = args.torch in ("auto", _torch_build()[1])
    if installed is not None and of_the_build and extras <= _with_those_of_all(config, installed):
        return
    _make_venv()
    wanted = extras | (installed or set())
    _install_torch(_requirement(config["options"]["install_requires"], "torch"), args.torch)
    target = f"{ROOT}[{','.join(sorted(wanted))}]" if wanted else str(ROOT)
    _pip("--no-build-isolation", "-c", str(ROOT / "constraints.txt"), "-e", target)
    _pip("--no-deps", *_without_dependencies(config, wanted))
    STAMP.write_text(json.dumps({"of": _fingerprint(), "extras": sorted(wanted)}))


def _with_those_of_all(config: configparser.ConfigParser, extras: set[str]) -> set[str]:
    """Return these extras and, if ``all`` is one, those that it names, which are not all extras."""
    _, _, named = config["options.extras_require"]["all"].partition("[")
    return extras | (set(named.rstrip("]").split(",")) if "all" in extras else set())


def _make_venv() -> None:
    if PYTHON.exists() and subprocess.run([PYTHON, "-m", "pip", "-V"], capture_output=True).stdout:
        return
    shutil.rmtree(VENV, ignore_errors=True)
    print("creating .venv", flush=True)
    if _venv_fails() and _can_apt() and _apt_install_venv():
        shutil.rmtree(VENV, ignore_errors=True)
        _venv_fails()
    if not PYTHON.exists() or subprocess.run([PYTHON, "-m", "pip", "-V"]).returncode:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(
            "error: Python cannot create virtual environments here; on Debian and Ubuntu run "
            f"`sudo apt-get install python{version}-venv` and try again"
        )


def _venv_fails() -> bool:
    command = [sys.executable, "-m", "venv", str(VENV)]
    return subprocess.run(command, capture_output=True).returncode != 0


def _can_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt_install_venv() -> bool:
    """Install ensurepip, which Debian leaves out of its python3 package; say whether it worked."""
    print("installing python3-venv with apt-get", flush=True)
    update = subprocess.run(["apt-get", "update", "-qq"])
    install = subprocess.run(["apt-get", "install", "-y", "-qq", "python3-venv"])
    return update.returncode == install.returncode == 0


def _install_torch(requirement: str, wanted: str) -> None:
    """Install torch first, so that whatever follows finds it there and leaves it alone."""
    version, build = _torch_build()
    if version == requirement.partition("==")[2] and wanted in ("auto", build):
        return
    asked = "as asked" if wanted != "auto" else "as before"
    if wanted == "auto" and version:  # the build once asked for stays, as on a login node
        wanted = build
    if version:  # pip would take the one build for the other
        subprocess.run([PYTHON, "-m", "pip", "uninstall", "-q", "-y", "torch"])
    if wanted == "cuda" or (wanted == "auto" and _has_gpu()):
        reason = "NVIDIA GPU found" if wanted == "auto" else asked
        print(f"{reason}: installing torch's CUDA build", flush=True)
        _pip("-c", str(ROOT / "constraints.txt"), requirement, "setuptools")
        if wanted == "cuda" and _torch_build()[1] != "cuda":
            sys.exit(
                "error: the package index gave a torch without CUDA; expected PIP_INDEX_URL to be "
                "one with CUDA builds"
            )
        return
    reason = "no NVIDIA GPU found" if wanted == "auto" else asked
    print(f"{reason}: installing torch's CPU build", flush=True)
    index = [] if _index_has_cpu_build(requirement) else ["--index-url", CPU_INDEX]
    _pip(*index, requirement)
    _pip("-c", str(ROOT / "constraints.txt"), "numpy", "setuptools")


def _without_dependencies(config: configparser.ConfigParser, extras: set[str]) -> list[str]:
    """Return what is installed without its dependencies; setup.cfg says why."""
    requirements = config["gam_scale:no_deps"]["requirements"].split()
    has_triton = sys.platform == "linux"  # where it has wheels
    if has_triton and extras & {"all", "gpu"} and _torch_build()[1] == "cpu":
        requirements += config["gam_scale:no_deps_on_cpu"]["requirements"].split()
    return requirements


def _torch_build() -> tuple[str, str]:
    """Return the installed torch's version, and ``cuda`` or ``cpu``; both empty without a torch."""
    for file in VENV.glob("lib/python*/site-packages/torch/version.py"):
        names: dict[str, str | None] = {}
        exec(file.read_text(), names)  # a few assignments; importing torch takes seconds
        return str(names["__version__"]).split("+")[0], "cuda" if names["cuda"] else "cpu"
    return "", ""


def _has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    return b"GPU" in subprocess.run([tool, "-L"], capture_output=True).stdout


def _index_has_cpu_build(requirement: str) -> bool:
    """Return whether the configured package index would give a torch without CUDA libraries.

    It asks pip for a plan, for which pip reads metadata only. PyPI's torch for Linux, x86-64, needs
    the nvidia-* packages; its builds for Arm and macOS, and those of some mirrors, do not.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        plan = ["--dry-run", "--no-deps", "--ignore-installed", "--report", str(report)]
        command = [str(PYTHON), "-m", "pip", "install", "-qq", *plan, requirement]
        if subprocess.run(command, capture_output=True).returncode:
            return False
        needs = json.loads(report.read_text())["install"][0]["metadata"].get("requires_dist", [])
    return not any(need.startswith(("nvidia", "cuda", "triton")) for need in needs)


def _requirement(text: str, name: str) -> str:
    (match,) = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}==")]
    return match


def _pip(*arguments: str) -> None:
    print("pip install " + " ".join(arguments), flush=True)
    command = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += arguments
    if subprocess.run(command).returncode:
        sys.exit("error: pip failed; its message is above")


def _read_stamp() -> set[str] | None:
    """Return the extras already installed from these very files, or None."""
    if not STAMP.exists() or not PYTHON.exists():
        return None
    stamp = json.loads(STAMP.read_text())
    return set(stamp["extras"]) if stamp["of"] == _fingerprint() else None


def _fingerprint() -> str:
    files = [ROOT / "setup.cfg", ROOT / "constraints.txt"]
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


if __name__ == "__main__":
    main()
