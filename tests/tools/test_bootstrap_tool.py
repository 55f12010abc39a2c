"""tools/bootstrap.py chooses torch's build: by the machine, or as it is told."""

import configparser
import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bootstrap.py"
VERSION = "2.13.0"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return ``install(wanted, build, gpu)``, which lists the builds of torch that pip is to get.

    ``build`` is the build that is there before, "" for none.
    """

    def run(wanted: str, build: str, gpu: bool, given: str = "cuda") -> list[str]:
        names = runpy.run_path(str(TOOL))["_install_torch"].__globals__
        file = tmp_path / "lib/python3.11/site-packages/torch/version.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        asked: list[str] = []

        def put(build: str) -> None:
            cuda = "'13.0'" if build == "cuda" else None
            file.write_text(f"from typing import Optional\n__version__ = '{VERSION}+x'\n")
            with open(file, "a") as out:
                out.write(f"cuda: Optional[str] = {cuda}\n")

        def pip(*words: str) -> None:
            if f"torch=={VERSION}" in words:
                asked.append("cpu" if "--index-url" in words else "cuda")
                put(given if asked[-1] == "cuda" else "cpu")

        if build:
            put(build)
        changed = {"VENV": tmp_path, "PYTHON": "true", "_pip": pip, "_has_gpu": lambda: gpu}
        names.update(changed | {"_index_has_cpu_build": lambda requirement: False})
        names["_install_torch"](f"torch=={VERSION}", wanted)
        return asked

    return run


@pytest.mark.parametrize(
    ("wanted", "build", "gpu", "asked"),
    [
        ("auto", "", False, ["cpu"]),
        ("auto", "", True, ["cuda"]),
        ("auto", "cuda", False, []),  # a login node keeps what it was told to take
        ("cuda", "", False, ["cuda"]),
        ("cuda", "cpu", False, ["cuda"]),
        ("cuda", "cuda", False, []),
        ("cpu", "cuda", True, ["cpu"]),
        ("cpu", "cpu", True, []),
    ],
)
def test_the_build_is_the_machines_or_the_one_asked_for(install, wanted, build, gpu, asked):
    found = install(wanted, build, gpu)
    assert found == asked, f"the wrong build of torch: {found}, expected {asked}"


def test_an_index_without_cuda_builds_is_said(install):
    with pytest.raises(SystemExit, match="error: the package index gave a torch without CUDA"):
        install("cuda", "", gpu=False, given="cpu")


@pytest.mark.parametrize(
    ("installed", "extras", "is_there"),
    [
        ({"all"}, {"all"}, True),
        ({"all"}, {"hub", "s3"}, True),
        ({"all"}, {"all", "lm-eval"}, False),  # not one of all
        ({"all", "lm-eval"}, {"lm-eval"}, True),
        ({"hub"}, {"all"}, False),
        (set(), set(), True),
    ],
)
def test_an_extra_outside_of_all_is_still_installed(installed, extras, is_there):
    config = configparser.ConfigParser()
    config.read(TOOL.parents[1] / "setup.cfg")
    covered = runpy.run_path(str(TOOL))["_with_those_of_all"](config, installed)
    assert (extras <= covered) == is_there, covered


@pytest.mark.parametrize(
    ("extras", "build", "platform", "triton"),
    [
        ({"all"}, "cpu", "linux", True),
        ({"gpu", "hub"}, "cpu", "linux", True),
        ({"all"}, "cuda", "linux", False),  # whose torch has brought its own
        ({"hub"}, "cpu", "linux", False),
        (set(), "cpu", "linux", False),
        ({"all"}, "cpu", "darwin", False),
    ],
)
def test_triton_comes_for_the_kernels_alone(monkeypatch, extras, build, platform, triton):
    names = runpy.run_path(str(TOOL))["_without_dependencies"].__globals__
    names["_torch_build"] = lambda: (VERSION, build)
    monkeypatch.setattr(sys, "platform", platform)
    config = configparser.ConfigParser()
    config.read(TOOL.parents[1] / "setup.cfg")
    found = names["_without_dependencies"](config, extras)
    assert any(requirement.startswith("triton==") for requirement in found) == triton, found
    assert any(requirement.startswith("mosaicml-streaming==") for requirement in found)
