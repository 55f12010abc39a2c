"""Fixtures of all tests: a small prepared set of generated text, and tiny runs on it."""

import json
import random
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source

COMPARED = ("step", "tokens", "loss", "lr", "grad_norm", "skipped_steps", "val_loss")
TOOLS = Path(__file__).parent.parent / "tools"
pytest_plugins = ["turns"]
TEXT = "the a cat dog bird tree sees likes finds under over near and then sleeps runs sings"
WORDS = TEXT.split()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/attack; pytest reads options only from this file."""
    parser.addoption("--attacks", type=int, default=70, help="cases of each kind, at least (70)")
    parser.addoption("--attack-seed", type=int, default=0, help="which cases (0)")


def sentences(seed: int, count: int) -> str:
    """Return ``count`` lines of reproducible nonsense, with some structure for a model to learn."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + "." for _ in range(count))
    return "\n".join(lines)


@pytest.fixture(scope="session")
def run_tool() -> Callable[..., int]:
    """``run_tool("evaluate", ...)`` -> exit status of tools/evaluate.py; capsys has its output."""

    def run(name: str, *arguments: object) -> int:
        path, before = str(TOOLS / f"{name}.py"), sys.argv
        sys.argv = [path, *map(str, arguments)]
        try:
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(path, run_name="__main__")
        finally:
            sys.argv = before
        return caught.value.code or 0

    return run


@pytest.fixture(scope="session")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 text files of a few hundred words each, prepared with a vocabulary of 320."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(24):
        (folder / f"{i:02d}.txt").write_text(sentences(i, 20 + i))
    out = folder / "prepared"
    source = parse_source(str(folder / "*.txt"))
    prepare(PrepareSpec(out, [source], vocab_size=320, valid_fraction=0.1))
    return out


@pytest.fixture(scope="session")
def tiny(prepared_set: Path) -> Callable[..., dict]:
    """``tiny(run_dir, section={...})`` -> the parsed JSON of a config that trains in a second."""

    def make(run_dir: Path, **changes: dict) -> dict:
        config = {
            "model": {
                "d_model": 32,
                "n_layers": 2,
                "max_seq_len": 48,
                "dropout": 0.1,
                "gam": {"n_slots": 16},
            },
            "data": {"sets": [{"path": str(prepared_set)}], "seq_len": 48},
            "train": {
                "steps": 20,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "lr": 3e-3,
                "warmup_steps": 3,
                "compile": "off",
            },
            "parallel": {"engine": "torch", "device": "cpu"},
            "eval": {"every_steps": 10, "max_tokens": 200, "batch_size": 2},
            "checkpoint": {"every_steps": 6},
            "log": {
                "run_dir": str(run_dir),
                "every_steps": 4,
                "wandb": "off",
                "tensorboard": False,
            },
        }
        for section, values in changes.items():
            config[section] |= values
        return config

    return make


@pytest.fixture(scope="session")
def whole(
    tiny: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """``whole(section={...})`` -> the directory of a complete run of that ``tiny`` config.

    A run is trained without interruption on first use and shared by all tests: never change it.
    """
    from whole_runs import train

    runs: dict[str, Path] = {}

    def find(**changes: dict) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in runs:
            run = tmp_path_factory.mktemp("whole") / "run"
            train(tiny(run, **changes))
            runs[key] = run
        return runs[key]

    return find


@pytest.fixture
def curve() -> Callable[[Path], list[dict]]:
    """``curve(run_dir)`` -> the logged lines, without the values that depend on the clock."""

    def read(run_dir: Path) -> list[dict]:
        lines = list(map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()))
        # A loss that is not finite is logged as null, and two nulls would compare as equal.
        lost = [line["step"] for line in lines if line["loss"] is None]
        assert not lost, f"{run_dir}: no loss at steps {lost}"
        return [{k: line.get(k) for k in COMPARED} for line in lines]

    return read
