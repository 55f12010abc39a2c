"""All ranks use what the main rank finds in a directory, even if it changes meanwhile."""

import socket
from pathlib import Path

import pytest
from ranks import run_ranks
from whole_runs import train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.errors import UserError
from gam_scale.parallel.agreed import agreed
from gam_scale.train.start import check_same_data


def begin_while_the_other_run_trains(world, first, config):
    """Train, while rank 1 does not see the newest checkpoint; return the text of a refusal."""
    original = CheckpointStore.steps

    def steps(self):
        late = world.rank == 1 and str(self.folder).startswith(first)
        return original(self)[: -1 if late else None]

    def refuse():
        raise UserError(f"rank {world.rank} refuses")

    with pytest.raises(UserError) as said:
        agreed(world, refuse)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "steps", steps)
        train(config)
    return str(said.value)


def test_all_ranks_begin_with_one_checkpoint_and_refuse_with_one_sentence(tmp_path, tiny):
    first, flat = tmp_path / "first", {"schedule": "constant", "warmup_steps": 0, "steps": 4}
    small = {"model": {"n_layers": 1}, "eval": {"every_steps": 0}}
    train(tiny(first, train=flat, checkpoint={"every_steps": 2}, **small))
    assert CheckpointStore(first / "checkpoints").steps() == [2, 4]
    config = tiny(tmp_path / "run", train=flat, checkpoint={"continue_from": str(first)}, **small)
    arguments = {"first": str(first), "config": config}
    said = run_ranks(begin_while_the_other_run_trains, 2, **arguments)
    for rank in range(2):
        log = Path(tmp_path / "run" / "logs" / f"rank{rank}.log").read_text()
        begins = f"continuing {first}/checkpoints/step-00000004"
        assert begins in log, f"ranks: rank {rank} begins with another checkpoint: {log}"
    assert said == ["rank 0 refuses"] * 2, "ranks: one's mistake is not said by all"


def refusal_of_different_data(world):
    with pytest.raises(UserError) as said:
        check_same_data(world, "new" if world.rank == 2 else "old")
    check_same_data(world, "the same")
    return str(said.value)


def test_ranks_that_read_different_data_are_named():
    said = run_ranks(refusal_of_different_data, 3)
    assert all("different data (others say which)" in said[rank] for rank in (0, 1))
    assert f"rank 2 on {socket.gethostname()}: other data than rank 0" in said[2]
