"""Texts that a run writes while it trains."""

import pytest
import torch
from engines import ENGINES, SEQ_LEN
from ranks import run_ranks
from whole_runs import assert_equal_runs, killed_after, train

from gam_scale.checkpoint.load import load_trained
from gam_scale.errors import UserError
from gam_scale.generate import sample
from gam_scale.run.records import SAMPLES, read_records
from gam_scale.train.hooks.sampling import LIKELY, draw

EVERY_5 = {"sample_every": 5, "sample_prompt": "the cat"}


def train_on_ranks(world, config):
    train(config)


def samples(run):
    return read_records(run / SAMPLES)


def test_samples_are_of_the_prompt_and_leave_the_run_as_it_is(tmp_path, tiny, whole, curve):
    short = {"train": {"steps": 10}}
    plain = whole(**short)
    train(tiny(tmp_path / "run", log=EVERY_5, **short))
    assert_equal_runs(plain, tmp_path / "run", curve)
    assert not (plain / SAMPLES).exists()
    found = samples(tmp_path / "run")
    assert [sample["step"] for sample in found] == [5, 10]
    assert all(sample["prompt"] == "the cat" and sample["text"] for sample in found)
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert "step 5, a sample: the cat" in log
    assert found[-1]["text"] == written(tmp_path / "run", "the cat")


def written(run, prompt):
    """What the finished model says, from the states of its layers, with the same draws."""
    trained = load_trained(run)
    model, tokenizer = trained.model.eval(), trained.tokenizer
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    state, new, said = model.init_state(), torch.tensor([tokens]), b""
    while len(tokens) < SEQ_LEN:
        with torch.no_grad():
            logits, state = model.extend(new, state)
        generator = draw(trained.config.train.seed, len(tokens), torch.device("cpu"))
        token = int(sample(logits[0, : tokenizer.vocab_size], LIKELY, generator))
        if token == tokenizer.bos_id:
            break
        tokens.append(token)
        said += tokenizer.id_to_bytes(token)
        new = torch.tensor([[token]])
    return said.decode(errors="replace")


@pytest.mark.parametrize("engine", ["zero3", "fsdp", "torch-context"])
def test_ranks_write_it_together(tmp_path, tiny, whole, engine):
    still = {"model": {"dropout": 0.0}, "train": {"steps": 2, "warmup_steps": 1}}
    log = EVERY_5 | {"sample_every": 2}
    one = whole(log=log, **still)
    parallel = ENGINES[engine] | {"device": "cpu"}
    run_ranks(train_on_ranks, 2, config=tiny(tmp_path / "two", parallel=parallel, log=log, **still))
    assert samples(tmp_path / "two") == samples(one)


def test_a_killed_run_has_each_step_once(tmp_path, tiny):
    settings = {"log": {"sample_every": 4}, "train": {"steps": 12}}
    train(tiny(tmp_path / "whole", **settings))
    with killed_after(9):
        train(tiny(tmp_path / "run", **settings))
    train(tiny(tmp_path / "run", **settings))
    assert samples(tmp_path / "run") == samples(tmp_path / "whole")


def test_a_prompt_that_a_sequence_cannot_hold_is_refused(tmp_path, tiny):
    log = {"sample_every": 4, "sample_prompt": 40 * "a cat "}
    with killed_after(3):
        train(tiny(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"log.sample_prompt has \d+ tokens.*data.seq_len 48"):
        train(tiny(tmp_path / "run", log=log), fresh=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before, "the earlier run is gone"
