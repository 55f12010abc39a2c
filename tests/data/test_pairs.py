"""Conversations in a prepared set stay whole in a sequence, and only answers carry loss."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chats import prepared_chats, row, spec_of, write_rows

from gam_scale.config import DataSetConfig
from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import conversation_of
from gam_scale.data.filters import Filters
from gam_scale.data.packing import IGNORE
from gam_scale.data.pairs import OPEN, TOO_LONG, Packer, Pairs
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import Reading
from gam_scale.data.shards import TokenSplit
from gam_scale.data.sources import parse_source
from gam_scale.data.stream import TrainStream, micro_batches, open_split, valid_batches
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError

SEQ_LEN = 64


@pytest.fixture(scope="module")
def chats(tmp_path_factory, prepared_set) -> Path:
    """A prepared set of conversations."""
    return prepared_chats(tmp_path_factory.mktemp("pairs"), prepared_set, SEQ_LEN)


@pytest.fixture(scope="module")
def pairs_file(chats) -> Path:
    """The file of conversations that the set was made from."""
    return chats.parent / "pairs.jsonl"


def encoded(tokenizer, rows) -> Counter:
    """Count the conversations, each encoded by itself as (ids, a mask of those that carry loss)."""
    template = ChatTemplate(DEFAULT, tokenizer)
    both = (template.encode(conversation_of(each, "x")) for each in rows)
    return Counter((tuple(ids.tolist()), tuple(c.tolist())) for ids, c in both)


def found(split: TokenSplit) -> Counter:
    """Count the conversations of a split as ``encoded`` does, cut out of the split's sequences."""
    out: Counter = Counter()
    for start in range(0, split.tokens, SEQ_LEN):
        ids, carries = split.read(start, SEQ_LEN), split.read_answers(start, SEQ_LEN)
        # A bos without loss opens a conversation, and a bos with loss closes it. Behind it comes
        # padding or the next conversation.
        begins = np.flatnonzero((ids == split.bos_id) & ~carries)
        assert begins[0] == 0
        for part in np.split(np.arange(SEQ_LEN), begins[1:]):
            end = part[0] + 1 + np.flatnonzero(carries[part])[-1]
            assert not (rest := part[end - part[0] :]).size or set(ids[rest].tolist()) == {0}
            out[tuple(ids[part[0] : end].tolist()), tuple(carries[part[0] : end].tolist())] += 1
    return out


def test_every_conversation_stands_whole_in_a_sequence(chats, tmp_path):
    train, valid = (TokenSplit(chats, name, tmp_path) for name in ("train", "valid"))
    tokenizer = train.load_tokenizer()
    expected = encoded(tokenizer, map(row, range(150)))
    short = Counter({k: n for k, n in expected.items() if len(k[0]) <= SEQ_LEN})
    assert found(train) + found(valid) == short and found(valid).total() > 5
    left_out = sum(each.info.left_out[TOO_LONG] for each in (train, valid))
    assert left_out == 150 - short.total() > 5
    for split in (train, valid):
        assert split.tokens % SEQ_LEN == 0 and split.info.documents == found(split).total()
        answers = split.info.answers
        ids = np.concatenate([np.array(k[0])[np.array(k[1])] for k in found(split).elements()])
        assert answers.tokens == len(ids)
        assert answers.bytes == tokenizer.token_bytes()[ids].sum()
        texts = [tokenizer.decode(k[0]) for k in found(split).elements()]
        assert split.info.bytes == sum(len(text.encode()) for text in texts)
        held = sum(len(k[0]) for k in found(split).elements())
        assert answers.padding == split.tokens - held


def test_it_is_packed_alike_by_any_number_of_workers(chats, pairs_file, prepared_set, tmp_path):
    two = prepare(spec_of(pairs_file, tmp_path / "two", prepared_set, SEQ_LEN, workers=2))
    for shard in two.splits["train"].shards:
        name = f"train/{shard.file}"
        assert (tmp_path / "two" / name).read_bytes() == (chats / name).read_bytes()


def test_targets_are_the_answers_alone(chats, tmp_path):
    splits = open_split([DataSetConfig(str(chats))], "train", tmp_path)
    stream = TrainStream(splits, [1.0], SEQ_LEN, "reset", 7, 1 << 20)
    total = 0
    for sample in range(stream.epoch_sequences):
        (batch,) = micro_batches(stream, sample, Sizes(), 0, 1)
        _, (i,) = stream.locate(np.array([sample]))
        start, length = i * SEQ_LEN, min(SEQ_LEN + 1, splits[0].tokens - i * SEQ_LEN)
        ids, carries = splits[0].read(start, length), splits[0].read_answers(start, length)
        expected = np.where(carries[1:], ids[1:].astype(np.int64), IGNORE)
        assert batch.targets[0, : length - 1].tolist() == expected.tolist()
        assert (batch.targets[0, length - 1 :] == IGNORE).all()
        assert batch.num_targets > 0, "a sequence without an answer"
        total += batch.num_targets
    assert total == splits[0].info.answers.tokens
    read = valid_batches(splits, SEQ_LEN, "reset", 3, 0, 1, 0)
    assert sum(batch.num_targets for batch in read) == total


class Sizes:
    global_batch_size = micro_batch_size = 1


def test_lengths_that_would_cut_are_refused(chats, tmp_path):
    splits = open_split([DataSetConfig(str(chats))], "train", tmp_path)
    TrainStream(splits, [1.0], 2 * SEQ_LEN, "reset", 0, 1 << 20)
    for length in (SEQ_LEN // 2, SEQ_LEN + 1):
        with pytest.raises(UserError, match=f"data.seq_len is {length}, which would cut"):
            TrainStream(splits, [1.0], length, "reset", 0, 1 << 20)
    with pytest.raises(UserError, match="--seq-len 48"):
        next(valid_batches(splits, 48, "reset", 3, 0, 1, 0))


def test_the_packer_is_bounded_and_fits_well(prepared_set):
    tokenizer, rng = load_tokenizer(prepared_set / "tokenizer.model"), np.random.default_rng(0)
    packer, out, given = Packer("train", 128, tokenizer), [], []
    for n in rng.integers(4, 129, 800).tolist():
        given.append(n)
        out += packer.add(np.full(n, 5, tokenizer.dtype), np.arange(n) > 1)
        assert len(packer._open) <= OPEN
    out += packer.rest()
    assert all(len(each.tokens) == len(each.carrying.carries) == 128 for each in out)
    assert sum(each.documents for each in out) == 800
    assert sum(int((each.tokens == 5).sum()) for each in out) == sum(given)
    assert sum(each.carrying.padding for each in out) == 128 * len(out) - sum(given)
    assert len(out) <= 1.05 * sum(given) / 128, "packs worse than published best-fit does"


def test_repeated_conversations(pairs_file, prepared_set, tmp_path):
    twice = tmp_path / "twice.jsonl"
    twice.write_text(2 * pairs_file.read_text())
    spec = spec_of(
        twice, tmp_path / "set", prepared_set, SEQ_LEN, filters=Filters(deduplicate=True)
    )
    train = prepare(spec).splits["train"]
    # All 150 conversations, of messages or of prompt and completion, stand in the file twice.
    assert train.left_out["repeated"] == 150


@pytest.mark.parametrize(
    ("line", "options", "fault"),
    [
        ({"prompt": "a"}, {}, r"pairs.jsonl: line 2: has 'prompt'"),
        (
            {"messages": [{"role": "human", "content": "a"}]},
            {},
            r"pairs.jsonl: line 2: messages\[0\].role is \"human\"",
        ),
        (
            {"prompt": "a", "completion": "b"},
            {"pairs": Pairs(SEQ_LEN, "{{ raise_exception('not me') }}")},
            "pairs.jsonl: line 1: the chat template does not take the messages .not me",
        ),
        ({"prompt": "a", "completion": "b"}, {"tokenizer": None}, "expected its --tokenizer"),
        (
            {"prompt": "a", "completion": "b"},
            {"filters": Filters(min_chars=3)},
            "--min-chars is of running text",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path, prepared_set, line, options, fault):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n" + json.dumps(line))
    options = {"tokenizer": prepared_set, "valid_fraction": 0} | options
    with pytest.raises(UserError, match=fault):
        prepare(spec_of(path, tmp_path / "set", options.pop("tokenizer"), SEQ_LEN, **options))


def test_bad_rows_may_be_left_out(tmp_path, prepared_set, capsys):
    path = tmp_path / "pairs.jsonl"
    rows = [row(1), {"prompt": "a"}, row(2)]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    source = parse_source(str(path), "train", Reading(pairs=True, skip_bad=True))
    spec = PrepareSpec(
        tmp_path / "set", [source], tokenizer=prepared_set, valid_fraction=0, pairs=Pairs(SEQ_LEN)
    )
    assert prepare(spec).splits["train"].documents == 2
    assert "1 bad rows or files were left out; the first: " in capsys.readouterr().err


def test_texts_are_no_conversations(tmp_path, prepared_set):
    (tmp_path / "a.txt").write_text("User: a\n\nAssistant: b")
    with pytest.raises(UserError, match="is running text; expected a row with 'messages'"):
        prepare(spec_of(tmp_path / "a.txt", tmp_path / "set", prepared_set, SEQ_LEN))


def test_tables_of_messages(tmp_path, prepared_set, pairs_file):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{**row(i), "other": i} for i in range(0, 30, 3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    made = prepare(spec_of(tmp_path / "a.parquet", tmp_path / "set", prepared_set, SEQ_LEN))
    assert sum(split.documents for split in made.splits.values()) == 10


def test_a_hub_data_set_of_messages(tmp_path, prepared_set):
    pytest.importorskip("datasets")
    write_rows(tmp_path / "train.jsonl", 20)
    source = parse_source(f"hf:{tmp_path}", "train", Reading(pairs=True))
    spec = PrepareSpec(
        tmp_path / "set", [source], tokenizer=prepared_set, valid_fraction=0, pairs=Pairs(SEQ_LEN)
    )
    train = prepare(spec).splits["train"]
    assert train.documents + train.left_out[TOO_LONG] == 20


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--pairs"], "--pairs packs conversations whole; expected --seq-len"),
        (["--seq-len", "64"], "are of conversations; expected --pairs"),
        (["--pairs", "--seq-len", "64"], "--pairs fine-tunes a model; expected its --tokenizer"),
        (["--pairs", "--seq-len", "64", "--text-column", "b"], "expected none of them with --p"),
        (["--pairs", "--seq-len", "64", "--chat-template", "no.jinja"], "no.jinja: no such file"),
    ],
)
def test_options_that_do_not_go_together(run_tool, pairs_file, tmp_path, capsys, words, fault):
    done = run_tool("prepare_data", "--train", pairs_file, "--out", tmp_path / "set", *words)
    assert done == 2 and fault in capsys.readouterr().err
