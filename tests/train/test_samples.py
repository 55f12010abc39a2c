"""Samples: texts that a run's model writes while it trains."""

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
    """Return the finished model's sample, decoded one token at a time with the same draws."""
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
    log = {"sample_every": 2, "sample_prompts": ["the cat", "a"]}
    one = whole(log=log, **still)
    parallel = ENGINES[engine] | {"device": "cpu"}
    run_ranks(train_on_ranks, 2, config=tiny(tmp_path / "two", parallel=parallel, log=log, **still))
    assert samples(tmp_path / "two") == samples(one)


def test_each_of_several_prompts_has_its_text(tmp_path, tiny, whole, curve):
    """A prompt's text is as if it were alone; an empty prompt is a document's start."""
    prompts, short = ["the cat", "", "a dog sees the"], {"train": {"steps": 4}}
    log = {"sample_every": 2, "sample_prompts": prompts, "tensorboard": True}
    train(tiny(tmp_path / "run", log=log, **short))
    assert_equal_runs(whole(**short), tmp_path / "run", curve)
    found = samples(tmp_path / "run")
    assert [(s["step"], s["prompt"]) for s in found] == [(n, p) for n in (2, 4) for p in prompts]
    for each in found[3:]:
        assert each["text"] == written(tmp_path / "run", each["prompt"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("after step 4") == 3 and page.count("after step 2") == 3
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(tmp_path / "run/logs/tensorboard")).Reload()
    assert len(events.Tensors("sample/3/text_summary")) == 2


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
    log = {"sample_every": 4, "sample_prompts": ["a", 40 * "a cat "]}
    with pytest.raises(UserError, match=r"log.sample_prompts\[1\] has \d+ tokens"):
        train(tiny(tmp_path / "run", log=log), fresh=True)
    with pytest.raises(UserError, match="are both given; expected one of them"):
        train(tiny(tmp_path / "run", log=log | {"sample_prompt": "a"}))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before, "the earlier run is gone"
