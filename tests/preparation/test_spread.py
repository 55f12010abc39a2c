"""A set that several tasks prepare has the same bytes as the set of a single process."""

import dataclasses
import json
import pickle
import random
import shutil

import numpy as np
import pytest

from gam_scale.data import prepare as data_prepare
from gam_scale.data import tokenizer_training
from gam_scale.data.filters import Filters
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import Reading
from gam_scale.data.sources import HubSource, StdlibSource, parse_source
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.data.tokens import TokenReading
from gam_scale.errors import EndedByOthers, UserError
from gam_scale.preparation import array as array_module
from gam_scale.preparation import folder as folder_module
from gam_scale.preparation import parts, spread, verdicts
from gam_scale.preparation.array import Array, Failure, OnSlurm, Size
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.spread import prepare_spread
from gam_scale.preparation.streams import shard_bounds

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("", "l", "nd", "st")]
DONE: list[str] = []
"""Items that :class:`Here` did, in order."""


class Here(Array):
    """Runs tasks in this process; what a task does is the same anywhere."""

    poll_s = 0.0

    def __init__(self, tasks, jobs):
        self._failures = []
        for number, task in enumerate(tasks):
            before = task._done()
            try:
                dataclasses.replace(task, processes=1).run()
            except UserError as error:
                self._failures.append(Failure("2", str(error), jobs / f"{number}.log"))
            DONE.extend(sorted(task._done() - before))

    def at_work(self):
        return 0

    def failures(self):
        return self._failures

    def stop(self):
        pass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Make each file a part, and run tasks in this process."""
    monkeypatch.setattr(parts, "PART_BYTES", 1)
    monkeypatch.setattr(spread, "Local", Here)
    DONE.clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of rows, some of them repeated within and across files, short, null or bad."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(3)
    texts = [" ".join(rng.choices(WORDS, k=int(10 ** rng.uniform(0, 3)))) for _ in range(150)]
    for number in range(7):
        rows = [{"text": rng.choice(texts)} for _ in range(30)]
        rows += [{"text": None}, {"n": 1}, {"text": "la la la la la " * 9}, {"text": None}]
        body = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{number}.jsonl").write_text(body)
    (folder / "valid.txt").write_text(f"{texts[0]}\n--\n{texts[1]}\n--\nhello valid\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tokenizer that was trained on another text."""
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    train_tokenizer([" ".join(WORDS)], path, 290)
    return path


def source(path, role="train", **how):
    return parse_source(str(path), role, Reading(skip_bad=True, **how))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(spec, tmp_path, tasks=(1, 3)):
    """Check that tasks make the plain set of ``spec`` and no other files; return its manifest."""
    plain = prepare(dataclasses.replace(spec, out=tmp_path / "plain"))
    for count in tasks:
        out = tmp_path / f"by-{count}"
        made = prepare_spread(dataclasses.replace(spec, out=out), "local", Size(count, 1))
        assert made == plain
        assert contents(out) == contents(tmp_path / "plain")
    assert not list(tmp_path.glob(".*"))
    return plain


FILTERS = Filters(deduplicate=True, min_chars=4, max_repetition=0.5)


def test_filters_hold_out_and_a_trained_tokenizer(corpus, tmp_path):
    spec = PrepareSpec(
        tmp_path, [source(corpus / "[0-4].jsonl"), source(corpus / "[56].jsonl")],
        vocab_size=300, filters=FILTERS, valid_fraction=0.1,
    )  # fmt: skip
    manifest = same(spec, tmp_path)
    assert set(manifest.splits) == {"train", "valid"}
    counts = manifest.splits["train"].left_out
    assert counts["repeated"] > 20 and counts["repetitive"] == 7 and counts["short"]


def test_a_sample_of_a_text_larger_than_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "SAMPLE_PIECE_CHARS", 100)
    defaults = tokenizer_training.Draw.__init__.__defaults__
    monkeypatch.setattr(tokenizer_training.Draw.__init__, "__defaults__", (5000, 0))
    trained = tokenizer_training.train_tokenizer.__defaults__
    monkeypatch.setattr(
        tokenizer_training.train_tokenizer, "__defaults__", (*trained[:1], 5000, *trained[2:])
    )
    assert defaults[0] == trained[1], "both ways draw as much"
    spec = PrepareSpec(tmp_path, [source(corpus / "*.jsonl")], vocab_size=290, filters=FILTERS)
    assert same(spec, tmp_path, (2,)).splits["train"].bytes > 3 * 5000


@pytest.mark.parametrize("fraction", [0.0, 0.03, 0.5])
def test_a_document_that_gives_its_tail(tmp_path, fraction):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(" ".join(WORDS) * (4 - number))
    spec = PrepareSpec(
        tmp_path, [source(tmp_path / "*.txt")], vocab_size=290, valid_fraction=fraction
    )
    same(spec, tmp_path, (2,))


def test_a_second_set_without_what_the_first_has(corpus, model, tmp_path):
    def spec(pattern, *against, deduplicate=True):
        filters = Filters(deduplicate, 4, None, against)
        return PrepareSpec(
            tmp_path, [source(corpus / pattern)], tokenizer=model, filters=filters,
            valid_fraction=0,
        )  # fmt: skip

    def documents(folder):
        return np.fromfile(folder / "digests.bin", "V16").tolist()

    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    same(spec("[0-2].jsonl"), first, (2,))
    made = same(spec("*.jsonl", first / "plain"), second, (2,))
    has, had = documents(second / "plain"), documents(first / "plain")
    assert len(has) == sum(s.documents for s in made.splits.values()) and len(set(has)) == len(has)
    whole = prepare(dataclasses.replace(spec("*.jsonl"), out=tmp_path / "whole"))
    assert not set(has) & set(had) and set(has) | set(had) == set(documents(tmp_path / "whole"))
    assert whole.source != made.source
    prepare(dataclasses.replace(spec("0.jsonl", deduplicate=False), out=tmp_path / "not"))
    with pytest.raises(UserError, match="not: was prepared without --deduplicate"):
        prepare(dataclasses.replace(spec("*.jsonl", tmp_path / "not"), out=tmp_path / "x"))
    (first / "plain" / "digests.bin").write_bytes(bytes(32))
    with pytest.raises(UserError, match=r"digests\.bin: has changed since the set was prepared"):
        prepare(dataclasses.replace(spec("*.jsonl", first / "plain"), out=tmp_path / "x"))


@pytest.mark.parametrize("limit", [None, 70])
def test_splits_of_their_own_and_a_given_tokenizer(corpus, model, tmp_path, limit):
    spec = PrepareSpec(
        tmp_path, [source(corpus / "*.jsonl")],
        valid=[source(corpus / "valid.txt", "valid", separator="--")],
        test=[source(corpus / "6.jsonl", "test")], tokenizer=model, max_documents=limit,
        filters=Filters(deduplicate=limit is not None),
    )  # fmt: skip
    manifest = same(spec, tmp_path, (2,))
    assert list(manifest.splits) == ["test", "train", "valid"]
    assert bool(manifest.splits["train"].left_out) == (limit is not None)


def test_ids_and_shards(tmp_path, model, monkeypatch):
    """Blocks are small, so a set has many shards; a last block joins the shard before it."""
    monkeypatch.setattr(data_prepare, "BLOCK_TOKENS", 64)
    monkeypatch.setattr(data_prepare, "SHARD_BYTES", 900)
    monkeypatch.setattr(spread, "BLOCK_TOKENS", 64)
    packages = (*folder_module.PACKAGES, "tests")  # where StdlibHead is
    monkeypatch.setattr(folder_module, "PACKAGES", packages)
    rng = np.random.default_rng(0)
    for number in range(3):
        rng.integers(1, 280, 1500).astype(np.uint16).tofile(tmp_path / f"{number}.bin")
    tokens = TokenReading((1,))
    spec = PrepareSpec(
        tmp_path, [parse_source(str(tmp_path / "?.bin"), tokens=tokens), StdlibHead()],
        tokenizer=model, filters=Filters(deduplicate=True), valid_fraction=0.2,
    )  # fmt: skip
    assert len(same(spec, tmp_path, (2,)).splits["train"].shards) > 5


class StdlibHead(StdlibSource):
    """Some small files of the standard library: a source that is one part."""

    @staticmethod
    def files():
        return [path for path in StdlibSource.files() if path.stat().st_size < 500][:20]


def test_shards_end_where_one_writer_ends_them(tmp_path, monkeypatch):
    monkeypatch.setattr(data_prepare, "BLOCK_TOKENS", 16)
    monkeypatch.setattr(data_prepare, "SHARD_BYTES", 530)
    joined = 0
    for count in (1, 16, 111, 112, 113, 120, 121, 128, 224, 230, 240, 347):
        writer = data_prepare.SplitWriter(tmp_path / str(count), "uint16")
        writer.add(data_prepare.Encoded("train", np.zeros(count, np.uint16), 1, 1))
        shards = [shard.tokens for shard in writer.finish({}).shards]
        assert [end - start for start, end in shard_bounds(count, "uint16")] == shards, count
        joined += shards[-1] > shards[0]
    assert joined, "no last block that joins a full shard was tried"


def test_pieces_of_a_hub_data_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    for number in range(3):
        rows = "".join(json.dumps({"text": f"text {number} {row}"}) + "\n" for row in range(4))
        (tmp_path / f"train-{number}.jsonl").write_text(rows)
    whole = HubSource(str(tmp_path), None, "train")
    pieces = [part.source for part in parts.cut_up(PrepareSpec(tmp_path, [whole]))]
    assert len(pieces) == 3
    texts = [text for piece in pieces for text in piece.documents()]
    assert texts == list(whole.documents()) and len(texts) == 12
    joined = HubSource(str(tmp_path), None, "train", Reading(separator="--"))
    assert len(parts.cut_up(PrepareSpec(tmp_path, [joined]))) == 1


def test_files_are_parts_of_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 10)
    for number, size in enumerate([3, 3, 3, 3, 50, 1]):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    cut = parts.cut_up(PrepareSpec(tmp_path, [source(tmp_path / "*.txt")]))
    assert [len(part.source.files) for part in cut] == [3, 1, 1, 1]
    assert [part.bytes for part in cut] == [9, 3, 50, 1]
    (tmp_path / "shards" / "of_one").mkdir(parents=True)
    (tmp_path / "shards" / "of_one" / "shard.00000.mds").write_text("x" * 7)
    assert parts._size(tmp_path / "shards") == 7, "shards in folders of their own"


@pytest.mark.parametrize("at_once", [7, 1 << 25])
def test_repeated_digests_as_one_set_finds_them(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(verdicts, "DIGESTS_AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    known = rng.integers(0, 6, (5, 2)).astype(np.uint64)
    seen, expected, reasons, paths = set(map(tuple, known)), [], [], []
    for number in range(5):
        digests = rng.integers(0, 6, (rng.integers(0, 30), 2)).astype(np.uint64)
        its = rng.integers(0, 2, 2 * len(digests)).astype(np.uint8)
        its[np.flatnonzero(its == 0)[len(digests) :]] = 1
        digests = digests[: int((its == 0).sum())]
        own = its.copy()
        for place, digest in zip(np.flatnonzero(its == 0), map(tuple, digests), strict=True):
            own[place] = 3 if digest in seen else 0
            seen.add(digest)
        paths.append(tmp_path / f"{number}.npz")
        verdicts.save_arrays(paths[-1], digests=digests)
        reasons.append(its)
        expected.append(own)
    verdicts._mark_repeated(paths, reasons, known)
    assert [r.tolist() for r in reasons] == [e.tolist() for e in expected]


def spec_of(corpus, tmp_path, **options):
    return PrepareSpec(
        tmp_path / "set", [source(corpus / "*.jsonl")], vocab_size=300, filters=FILTERS, **options
    )


def test_what_is_done_is_not_done_again(corpus, tmp_path, monkeypatch):
    spec = spec_of(corpus, tmp_path)
    plain = prepare(dataclasses.replace(spec, out=tmp_path / "plain"))

    def interrupted(*_):
        raise KeyboardInterrupt

    for stop_at in ("judge", "train_on_sample", "shard_bounds", "write_manifest", "place"):
        with monkeypatch.context() as patch:
            patch.setattr(spread, stop_at, interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare_spread(spec, "local", Size(2, 1))
        assert not spec.out.exists()
    assert prepare_spread(spec, "local", Size(3, 1)) == plain
    assert contents(spec.out) == contents(tmp_path / "plain")
    assert len(DONE) == 7 * 3 + 2, "each part once a stage, and a shard of each split"
    assert prepare_spread(spec, "local", Size(3, 1)) == plain and len(DONE) == 7 * 3 + 2


def test_a_set_that_was_put_in_its_place_is_not_taken_for_shards(corpus, tmp_path, monkeypatch):
    """The command was killed between the rename and its end, and is called with --overwrite."""
    spec = spec_of(corpus, tmp_path, overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(spread.shutil, "rmtree", lambda *_, **__: None)
        made = prepare_spread(spec, "local", Size(2, 1))
    assert Folder.of(spec.out).path.exists()
    before = contents(spec.out)
    assert prepare_spread(spec, "local", Size(2, 1)) == made
    assert contents(spec.out) == before and not list(tmp_path.glob(".*"))


def test_other_settings_or_sources_are_never_mixed(corpus, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    for path in corpus.glob("*.jsonl"):
        (own / path.name).write_bytes(path.read_bytes())
    spec = spec_of(own, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(spread, "judge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_spread(spec, "local", Size(2, 1))
    with pytest.raises(UserError, match="begun from other inputs or settings.*--overwrite"):
        prepare_spread(dataclasses.replace(spec, vocab_size=310), "local", Size(2, 1))
    with open(own / "3.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    part = Folder.of(spec.out).parts[3]
    with pytest.raises(UserError, match=r"3\.jsonl .* has changed since the preparation began"):
        part.check()
    with pytest.raises(UserError, match="begun from other inputs"):
        prepare_spread(spec, "local", Size(2, 1))
    spec, ended = dataclasses.replace(spec, overwrite=True), []
    monkeypatch.setattr(OnSlurm, "stop", lambda array: ended.append(array.numbers))
    monkeypatch.setattr(
        array_module, "slurm_states", lambda: {"7_0": "CANCELLED"} if ended else {"7_0": "RUNNING"}
    )
    (Folder.of(spec.out).jobs / "slurm.json").write_text('{"7_0": "log"}')
    same = prepare_spread(spec, "local", Size(2, 1))
    assert ended == ["7"], "an array at work on other settings would write beside the new ones"
    assert same == prepare(dataclasses.replace(spec, out=tmp_path / "plain"))


def test_a_failed_task_is_told_of_and_the_rest_is_done(corpus, tmp_path, capsys):
    strict = parse_source(str(corpus / "*.jsonl"))  # bad rows are refused
    spec = PrepareSpec(tmp_path / "set", [strict], vocab_size=300)
    with pytest.raises(EndedByOthers, match="measuring the text: 7 items are not done; what is"):
        prepare_spread(spec, "local", Size(2, 1))
    said = capsys.readouterr().err
    assert said.count("a task of measuring the text failed with status 2: ") == 2
    assert "0.jsonl: line 32: no column 'text'" in said and "its log is " in said
    assert not spec.out.exists()


@pytest.mark.parametrize(("least", "said"), [(0.0, 1), (spread.LEAST_S, 0)])
def test_only_a_longer_preparation_says_what_a_terabyte_takes(
    corpus, model, tmp_path, monkeypatch, capsys, least, said
):
    monkeypatch.setattr(spread, "LEAST_S", least)
    spec = PrepareSpec(tmp_path / "set", [source(corpus / "0.jsonl")], tokenizer=model)
    prepare_spread(spec, "local", Size(1, 1))
    assert capsys.readouterr().err.count("at that rate 1 TB of text takes ") == said


def test_two_commands_at_once(corpus, tmp_path):
    spec = spec_of(corpus, tmp_path)
    folder = Folder.of(spec.out)
    folder.path.mkdir()
    refused = pytest.raises(UserError, match="set is being prepared by process .* expected that")
    with spread._locked(folder, spec.out), refused:
        prepare_spread(spec, "local", Size(2, 1))
    prepare_spread(spec, "local", Size(2, 1))


def test_a_set_that_is_made_anew_keeps_its_work(corpus, tmp_path):
    """A command without --overwrite returns the set, and does not touch work on a new one."""
    spec = spec_of(corpus, tmp_path)
    made = prepare_spread(spec, "local", Size(2, 1))
    folder = Folder.of(spec.out)
    folder.path.mkdir()
    (folder / "begun.json").write_text("{}")
    with spread._locked(folder, spec.out):
        assert prepare_spread(spec, "local", Size(2, 1)) == made
        assert (folder / "begun.json").exists()
    assert prepare_spread(spec, "local", Size(2, 1)) == made and not folder.path.exists()


@pytest.mark.parametrize(("code", "status"), [(0, 0), (2, 2), (137, -9), (143, -15), (255, 255)])
def test_what_srun_says_of_signals(code, status):
    assert array_module._status_of_srun_code(code) == status


def test_a_folder_that_others_wrote_runs_nothing(tmp_path):
    (tmp_path / "parts.pickle").write_bytes(pickle.dumps(shutil.rmtree))
    with pytest.raises(UserError, match="names shutil.rmtree, which no preparation wrote"):
        _ = Folder(tmp_path).parts
