"""Runs on conversations, with or without text: resumed bit for bit, and what they log."""

import json

import pytest
from chats import prepared_chats, spec_of, write_rows
from whole_runs import assert_equal_runs, killed_after, train

from gam_scale.data.chat_template import DEFAULT
from gam_scale.data.manifest import read_manifest
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source
from gam_scale.errors import UserError

SEQ_LEN = 48


@pytest.fixture(scope="module")
def chats(tmp_path_factory, prepared_set):
    """Prepare a data set of conversations."""
    return prepared_chats(tmp_path_factory.mktemp("chats"), prepared_set, SEQ_LEN)


def mixed(tiny, run, chats, prepared_set):
    """Return a config: all sequences are conversations in the first stage, then half of them."""
    sets = [{"path": str(chats)}, {"path": str(prepared_set)}]
    stages = [{"steps": 4, "weights": {"chats": 1, "prepared": 0}}, {"steps": 6}]
    return tiny(
        run,
        model={"layers": ["gam_delta", "static"], "memory": {"n_heads": 2}},
        data={"sets": sets},
        train={"steps": 10, "stages": stages},
        log={"every_steps": 1},
        eval={"every_steps": 5, "max_tokens": 0},
    )


def test_a_mixture_in_stages_resumes_bit_for_bit(tmp_path, tiny, chats, prepared_set, curve):
    whole = mixed(tiny, tmp_path / "whole", chats, prepared_set)
    train(whole)
    with killed_after(8):  # resumes from step 6, past the first stage
        train(mixed(tiny, tmp_path / "run", chats, prepared_set))
    train(mixed(tiny, tmp_path / "run", chats, prepared_set))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", curve)


def test_speed_is_of_all_tokens_and_the_rest_of_answers(tmp_path, tiny, chats, capsys):
    run = tmp_path / "run"
    train(tiny(run, data={"sets": [{"path": str(chats)}]}, log={"every_steps": 20}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = lines[-1]
    info = read_manifest(chats).splits["train"]
    seconds = last["seconds"] - lines[-2]["seconds"]
    # 4 sequences of 48 tokens a step, of which answers are less than half.
    assert last["tokens"] < 20 * 4 * SEQ_LEN / 2
    assert last["tokens_per_s"] * seconds > 4 * SEQ_LEN * (20 - lines[-2]["step"]) * 0.9
    each = info.answers.bytes / info.answers.tokens
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / 0.6931471805599453 / each)
    said = f"answers alone carry loss, {info.answers.tokens:,} of {info.tokens:,} tokens"
    assert said in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["data"]["chat_template"] == DEFAULT


def test_another_template_than_the_datas_is_refused(tmp_path, tiny, chats):
    given = {"sets": [{"path": str(chats)}], "chat_template": "{{ messages }}"}
    with pytest.raises(UserError, match="data.chat_template is not the one"):
        train(tiny(tmp_path / "run", data=given))


def test_weights_that_know_other_ids_are_warned_of(tmp_path, tiny, prepared_set, capsys):
    train(tiny(tmp_path / "base", train={"steps": 2, "warmup_steps": 1}))
    other = tmp_path / "other"
    prepare(PrepareSpec(other, [parse_source(str(prepared_set.parent / "0*.txt"))], vocab_size=310))
    chats = tmp_path / "chats"
    prepare(spec_of(write_rows(tmp_path / "pairs.jsonl"), chats, other, SEQ_LEN))
    start = {"init_from": str(tmp_path / "base")}
    changes = {
        "model": {"vocab_size": 320},
        "checkpoint": start,
        "train": {"steps": 2, "warmup_steps": 1},
    }
    train(tiny(tmp_path / "run", data={"sets": [{"path": str(chats)}]}, **changes))
    assert "is not that of data.sets, so its weights know other words" in capsys.readouterr().err


def test_three_conversations_are_enough(tmp_path, tiny, prepared_set):
    chats = tmp_path / "chats"
    short = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}?", "completion": "no"} for i in range(3)]
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(spec_of(short, chats, prepared_set, SEQ_LEN, valid_fraction=0.01))
    splits = read_manifest(chats).splits
    assert (splits["train"].documents, splits["valid"].documents) == (2, 1)
    train(tiny(tmp_path / "run", data={"sets": [{"path": str(chats)}]}, train={"steps": 3}))
    assert "val_loss" in (tmp_path / "run" / "metrics.jsonl").read_text()
