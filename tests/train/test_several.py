"""Runs one after another in one process: each as if it were alone."""

import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
from whole_runs import train

ENGINES = [("deepspeed", 1), ("deepspeed", 3), ("fsdp", 0), ("deepspeed", 1)]


def train_in_turn(configs: list[dict]) -> list[int]:
    """Train each config; return how many models are in memory after each."""
    alive = []
    for config in configs:
        train(config)
        gc.collect()
        alive.append(sum(type(each).__name__ == "LanguageModel" for each in gc.get_objects()))
    return alive


def test_every_engine_trains_run_after_run_in_one_process(tmp_path, tiny, curve) -> None:
    changes = {"train": {"steps": 6}, "eval": {"every_steps": 0}}
    configs = [
        tiny(tmp_path / f"{i}", parallel={"engine": engine, "zero_stage": stage}, **changes)
        for i, (engine, stage) in enumerate(ENGINES)
    ]
    train(tiny(tmp_path / "alone", **changes))
    alone = curve(tmp_path / "alone")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        alive = pool.submit(train_in_turn, configs).result()
    for i, engine in enumerate(ENGINES):
        losses = [line["loss"] for line in curve(tmp_path / f"{i}")]
        assert losses == pytest.approx([line["loss"] for line in alone], rel=1e-5), (
            f"run {i} in one process, by {engine}, is not the run alone"
        )
    assert curve(tmp_path / "3") == curve(tmp_path / "0"), "a later run differs from an earlier one"
    assert alive[0] == 0, "an engine of a finished run is still in memory"
