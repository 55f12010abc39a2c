"""Test tasks for trained models: what they ask, by which tokens, and what counts as right."""

import json
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from closeness import worst
from small import VOCAB, small

from gam_scale.errors import UserError
from gam_scale.evaluate.asked import logits_at
from gam_scale.evaluate.downstream.last_word import _WORD
from gam_scale.evaluate.downstream.pairs_of_text import continued
from gam_scale.evaluate.downstream.task import Material, kinds, make_ready, read_tasks
from gam_scale.evaluate.scorer import Scorer, Text
from gam_scale.evaluate.tasks.task import tasks
from gam_scale.evaluate.text import long_documents
from gam_scale.model.lm import build_model
from gam_scale.parallel.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))
QUESTIONS = [
    {"context": "The sky is", "choices": ["blue", "a blue bird"], "answer": 0},
    {"context": "two and two ", "choices": ["four", "5", "six"], "answer": 2},
]


def by_rule(rule, vocab_size: int, seq_len: int = 128) -> Scorer:
    """Return a scorer by ``rule``, which maps the ids of one document to logits (len(ids), V)."""

    def logits(tokens, layout, at):
        out = torch.zeros(*tokens.shape, vocab_size)
        for row, ids in enumerate(tokens.tolist()):
            starts = layout.starts[row].nonzero()[:, 0].tolist()
            for begin, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                out[row, begin:end] = rule(ids[begin:end])
        return out.flatten(0, 1)[at]

    return Scorer(logits, vocab_size, ALONE, seq_len=seq_len, batch_size=3)


def copying(vocab_size: int):
    """Return a rule that predicts what followed the current token where it last occurred."""

    def rule(ids):
        out = torch.zeros(len(ids), vocab_size)
        for t in range(1, len(ids)):
            for i in range(t - 1, 0, -1):
                if ids[i] == ids[t]:
                    out[t, ids[i + 1]] = 5.0
                    break
        return out

    return rule


def asked(task: dict, tokenizer, scorer: Scorer, texts=()) -> dict:
    """Run one task on a scorer and return its results."""
    documents = partial(
        long_documents, list(texts), tokenizer.bos_id, what="the text", expected="more"
    )
    material = Material(tokenizer, documents, seq_len=128)
    (measure,) = make_ready(read_tasks({"t": task}, "tasks"), material, "tasks").values()
    return measure(scorer)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("layers", "settings"),
    [(["delta", "static"], {}), (["attention"], {"position": "rotary"}), (["mamba2"], {})],
)
def test_likelihoods_are_those_of_steps_one_after_another(layers, settings, fixed):
    """Compare in float64, on texts of ragged lengths, several of which share a row."""
    model = build_model(small(*layers, **settings), seed=2).double().eval()
    rng = np.random.default_rng(0)
    texts, ends = [], []
    for length, n in [(9, 1), (30, 7), (2, 2), (17, 16), (30, 30), (5, 2), (1, 1), (12, 3)]:
        ids = rng.integers(VOCAB, size=length + 1)
        texts.append(Text(ids[:-1], np.arange(length - n, length)))
        ends.append(ids[-n:])
    scorer = Scorer(partial(logits_at, model), VOCAB, ALONE, seq_len=32, batch_size=2, fixed=fixed)
    found = scorer.likelihoods(texts, ends)
    expected, greedy = [], []
    for text, end in zip(texts, ends, strict=True):
        state, steps = model.init_state(), []
        with torch.no_grad():
            for token in text.ids:
                logits, state = model.extend(torch.tensor([[int(token)]]), state)
                steps.append(torch.log_softmax(logits[0], -1))
        own = torch.stack(steps)[torch.from_numpy(text.at)]
        expected.append(float(own.gather(1, torch.from_numpy(end)[:, None]).sum()))
        greedy.append(bool((own.argmax(1) == torch.from_numpy(end)).all()))
    assert worst(np.abs(found.nats - expected).tolist()) < 1e-9  # float64, summed in another order
    assert found.greedy.tolist() == greedy
    rows = torch.from_numpy(np.stack([texts[1].ids, texts[4].ids]))
    last = scorer.last_log_probs(rows)
    with torch.no_grad():
        whole = torch.log_softmax(model(rows)[:, -1], -1)
    assert worst((last - whole).abs().flatten().tolist()) < 1e-6  # returned in float32


def harness_pair(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode a pair as lm-evaluation-harness's TemplateLM._encode_pair does, written again."""
    n_spaces = len(context) - len(context.rstrip())
    if n_spaces > 0:
        continuation = context[-n_spaces:] + continuation
        context = context[:-n_spaces]
    whole = tokenizer.encode(context + continuation)
    context_enc = tokenizer.encode(context)
    return context_enc, whole[len(context_enc) :]


def test_the_boundary_is_the_harness_s(tokenizer):
    rng = random.Random(0)
    pieces = ["cat", " dog", "  ", "\n", "ä", "The magic", "1", ".", " 🌳", "\t"]
    for _ in range(200):
        context = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        continuation = "".join(rng.choices(pieces, k=rng.randint(1, 4)))
        before, after = harness_pair(tokenizer, context, continuation)
        if not after:
            continue
        text, end = continued(tokenizer, context, continuation, 200)
        full = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
        assert end.tolist() == after, (context, continuation)
        assert text.ids.tolist() == full[:-1] and len(text.at) == len(after)
        assert text.at[-1] == len(text.ids) - 1
        if len(after) < 6:  # the harness reads the last max_length inputs
            short, _ = continued(tokenizer, context, continuation, 6)
            assert short.ids.tolist() == full[:-1][-6:] and len(short.at) == len(after)
    with pytest.raises(UserError, match="a tree. has 6 tokens; expected 1 to the 2 that"):
        continued(tokenizer, "a", " magic word of a tree", 2)


def test_choices_by_all_of_their_likelihood_and_by_that_per_byte(tmp_path, tokenizer):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n\n" for row in QUESTIONS))
    size = tokenizer.vocab_size

    def rule(ids):  # all tokens are equally likely: shorter is likelier
        return torch.zeros(len(ids), size)

    found = asked({"kind": "choice", "file": str(file)}, tokenizer, by_rule(rule, size))
    costs = [
        [len(harness_pair(tokenizer, row["context"], f" {c}")[1]) for c in row["choices"]]
        for row in QUESTIONS
    ]
    per_byte = [
        [n / len(c.encode()) for n, c in zip(cost, row["choices"], strict=True)]
        for cost, row in zip(costs, QUESTIONS, strict=True)
    ]

    def share(of) -> float:
        right = [
            all(other > cost[row["answer"]] for i, other in enumerate(cost) if i != row["answer"])
            for cost, row in zip(of, QUESTIONS, strict=True)
        ]
        return sum(right) / len(right)

    assert found["accuracy"].mean == share(costs) == 0.5
    assert found["accuracy_per_byte"].mean == share(per_byte)
    nats = math.log(size) * (costs[0][0] + costs[1][2])
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(" blue  six"))
    assert found["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    none = {"kind": "choice", "file": str(file), "max_items": 1}
    assert asked(none, tokenizer, by_rule(rule, size))["chance"] == 1 / 2


def test_the_last_word_of_lines_and_of_the_text(tmp_path, tokenizer, texts):
    file, size = tmp_path / "words.jsonl", tokenizer.vocab_size
    lines = ["a cat dog cat dog", "a house tree house stone"]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    copies = by_rule(copying(size), size)
    found = asked({"kind": "last_word", "file": str(file)}, tokenizer, copies)
    assert found["accuracy"].mean == 0.5 and found["perplexity"] > 1
    task = {"kind": "last_word", "tokens": 100, "passages": 5}
    uniform = by_rule(lambda ids: torch.zeros(len(ids), size), size)
    assert asked(task, tokenizer, uniform, texts)["perplexity"] >= size * (1 - 1e-9)
    with pytest.raises(UserError, match=r"tasks.t: the longest document of the text has"):
        asked(task, tokenizer, uniform, [text[:20] for text in texts])


def test_no_line_break_or_indent_is_asked_for_with_a_last_word():
    text = "if found:\n    return none of them\n\n        finally:"
    assert [match[0] for match in _WORD.finditer(text)] == ["found", "none", "them"]


def test_synthetic_tasks_in_words(tokenizer):
    size = tokenizer.vocab_size
    copies = by_rule(copying(size), size)
    task = {"kind": "recall", "size": [32, 4], "words": 12, "texts": 9}
    found = asked(task, tokenizer, copies)
    assert found["accuracy"].mean == 1.0 and found["chance"] == 2 / 12
    blind = by_rule(lambda ids: torch.zeros(len(ids), size), size)
    assert asked(task, tokenizer, blind)["accuracy"].mean == 0.0  # a tie counts as wrong
    rng = np.random.default_rng(0)
    random = by_rule(lambda ids: torch.from_numpy(rng.normal(size=(len(ids), size))), size)
    few = {"kind": "recall", "size": [64, 1], "words": 64, "texts": 8}
    found = [asked(few, tokenizer, random)["accuracy"].mean for _ in range(100)]
    # Four standard errors of 800 questions, each right in one of 32 cases: 0.025.
    assert np.mean(found) == pytest.approx(1 / 32, abs=0.025), "all values are candidates"
    assert 0 <= asked({"kind": "s3", "size": [16]}, tokenizer, copies)["accuracy"].mean < 0.9
    assert tasks().keys() < kinds().keys()


def test_hidden_sentences(tokenizer, texts):
    size = tokenizer.vocab_size
    copies = by_rule(copying(size), size)
    needle = {"kind": "needle", "lengths": [60, 100], "candidates": 6, "trials": 3}
    found = asked(needle, tokenizer, copies, texts)
    assert found["accuracy_at_60"].mean == found["accuracy"].mean == 1.0
    assert found["gain"] > 1 and found["chance"] == 1 / 6
    pairs = {"kind": "pairs", "lengths": [110], "pairs": 2, "candidates": 6, "trials": 4}
    assert asked(pairs, tokenizer, copies, texts).keys() == {"accuracy", "chance"}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "needle",
            'tasks.t is "needle"; expected an object with a "kind", one of choice, last_word',
        ),
        ({"kind": "riddle"}, "tasks.t is .*riddle.*; expected an object with a"),
        ({"kind": "choice", "delimeter": ""}, "tasks.t.delimeter is no setting of kind choice"),
        ({"kind": "choice"}, "tasks.t.file is missing; expected a string"),
        ({"kind": "choice", "file": "none.jsonl"}, "tasks.t: none.jsonl"),
        ({"kind": "recall", "size": [64, 40]}, "tasks.t: recall of 40 pairs"),
        ({"kind": "recall", "size": [256, 2]}, r"tasks.t: size is \[256, 2\], more than the 128"),
        (
            {"kind": "needle", "lengths": [500]},
            "tasks.t: lengths has 500; expected at most the 128",
        ),
        (
            {"kind": "needle", "lengths": [9], "candidates": 4},
            "tasks.t: lengths has 9, too few tokens for the sentence",
        ),
        (
            {"kind": "pairs", "lengths": [100], "pairs": 5, "candidates": 4},
            r"tasks.t: pairs has \[5\]; expected numbers from 2 to the 4",
        ),
        (
            {"kind": "needle", "lengths": [60], "candidates": 999},
            "tasks.t: the tokenizer has .* whole words, .* expected candidates of at most",
        ),
        ({"kind": "needle", "depths": [1.5]}, r"tasks.t.depths\[0\] is 1.5; expected"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(tokenizer, texts, task, message):
    with pytest.raises(UserError, match=message):
        asked(task, tokenizer, by_rule(None, tokenizer.vocab_size), texts)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", r"line 1 is \[1\]; expected an object"),
        ("{", "line 1 is not valid JSON"),
        ('{"choices": ["a", "b"], "answer": 0}', "context is null; expected text"),
        ('{"context": "c", "choices": ["a"], "answer": 0}', "expected two texts or more"),
        ('{"context": "c", "choices": ["a", ""], "answer": 0}', "none of them empty"),
        ('{"context": "c", "choices": ["a", "b"], "answer": 2}', "answer is 2; expected 0 to 1"),
        ('{"context": "\\\\ud800", "choices": ["a", "b"], "answer": 0}', "half of a character"),
        ("", "has no question"),
    ],
)
def test_a_file_of_questions_that_is_none(tmp_path, tokenizer, row, message):
    file = tmp_path / "questions.jsonl"
    file.write_text(row.replace("\\\\", "\\"))
    with pytest.raises(UserError, match=message):
        asked({"kind": "choice", "file": str(file)}, tokenizer, by_rule(None, 350))
