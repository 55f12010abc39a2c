"""Offload to disk: numbers are the same as in memory, and shards are read and written alike."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.parallel.zero import import_deepspeed
from gam_scale.parallel.zero_config import check_offload_dir, engine_config
from gam_scale.strict import from_dict


def config_of(offload, folder, n_ranks):
    """Return a config so wide that DeepSpeed swaps: tensors under 1 MB a rank stay in memory."""
    model = {"d_model": 512, "n_layers": 2, "vocab_size": 320, "dropout": 0.0, "max_seq_len": 32}
    parallel = {"zero_stage": 3, "offload": offload, "offload_dir": folder}
    train = {"steps": 9, "global_batch_size": 2 * n_ranks, "micro_batch_size": 1}
    return from_dict(RunConfig, {"model": model, "train": train, "parallel": parallel})


def train_and_resume(world, offload, folder):
    """Train two steps, go back and repeat them; return losses and norms, and the files' bytes."""
    from gam_scale.data.packing import plain_batch
    from gam_scale.parallel.build import build_strategy, initialise
    from gam_scale.train.step import train_step

    config = config_of(offload, folder, world.world_size)
    strategy = build_strategy(config, world.arranged(config.parallel), compiled=False)
    initialise(strategy, config)
    generator = torch.Generator().manual_seed(world.rank)
    tokens = torch.randint(320, (3, 2, 1, 33), generator=generator)

    def step(i):
        batches = [plain_batch(t[:, :-1], t[:, 1:]) for t in tokens[i]]
        loss, _, norm = train_step(strategy, batches, 1e-3, max_norm=0.5, n_targets=64)
        return [float(loss), float(norm)]

    step(0)
    saved = [replace(shard, data=shard.data.clone()) for shard in strategy.shards()]
    first = [step(1), step(2)]
    shards = strategy.shards()
    for shard, was in zip(shards, saved, strict=True):
        shard.data.copy_(was.data)
    strategy.after_write(shards)
    again = [step(1), step(2)]
    files = Path(folder or "none").rglob("*.swp")
    return {"first": first, "again": again, "bytes": sum(path.stat().st_size for path in files)}


@pytest.mark.matrix  # may compile async_io, for minutes
@pytest.mark.parametrize("offload", ["optimizer", "parameters"])
def test_same_numbers_from_disk(tmp_path, offload):
    deepspeed_ops = pytest.importorskip("deepspeed.ops.op_builder")
    if not deepspeed_ops.AsyncIOBuilder().is_compatible():
        pytest.skip("no libaio with headers")
    deepspeed_ops.AsyncIOBuilder().load(verbose=False)
    in_memory = run_ranks(train_and_resume, 2, offload=offload, folder="")[0]
    on_disk = run_ranks(train_and_resume, 2, offload=offload, folder=str(tmp_path))[0]
    assert on_disk["first"] == on_disk["again"] == in_memory["first"]
    assert in_memory["bytes"] == 0
    # At least parameters and both moments of the large tensors: most of 6 million parameters.
    assert on_disk["bytes"] > 12 * 5_000_000


@pytest.mark.parametrize("offload", ["optimizer", "parameters"])
def test_one_block_is_in_memory_at_a_time(offload):
    zero = engine_config(config_of(offload, "/nvme", 1), 1)["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "nvme_path": "/nvme"}
    assert zero["sub_group_size"] < 4_000_000
    if offload == "parameters":
        assert zero["offload_param"].items() >= zero["offload_optimizer"].items()
        assert zero["offload_param"]["buffer_size"] == 4 * 512 * 512


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    import_deepspeed(torch.device("cpu"))
    from deepspeed.ops.op_builder import AsyncIOBuilder

    monkeypatch.setattr("gam_scale.parallel.zero_config.can_compile", lambda _: (True, "g++"))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: False)
    with pytest.raises(UserError, match="async_io operator cannot be compiled here: libaio with"):
        check_offload_dir(str(tmp_path / "swap"))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self: True)
    check_offload_dir(str(tmp_path / "swap"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(UserError, match="here: the CUDA toolkit is missing"):
        check_offload_dir(str(tmp_path / "swap"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/swap, which cannot be made"):
        check_offload_dir(str(tmp_path / "file" / "swap"))
