"""docs/bring_your_own.md: tests that are there show what each row says."""

import ast

from pages import ROOT

PAGE = ROOT / "docs" / "bring_your_own.md"
SHOWN_BY = {
    "two `.bin` files of uint16 ids": [
        "tests/data/test_tokens.py::test_every_form_gives_the_same_documents",
    ],
    "llm.c's `.bin` with a header, Megatron's `.bin` and `.idx`, `.npy`": [
        "tests/data/test_tokens.py::test_every_form_gives_the_same_documents",
    ],
    "ids of a larger vocabulary (uint32)": [
        "tests/data/test_tokens.py::test_other_files",
    ],
    "GPT-2's tokenizer": [
        "tests/data/test_huggingface_tokenizer.py::test_exact_with_the_librarys_ids",
        "tests/export/test_tokenizer_files.py::test_the_same_ids_in_transformers_and_back",
    ],
    "one `input.txt`": [
        "tests/data/test_prepare.py::test_one_document_is_enough",
    ],
    "a tokenizer and a `.bin` file, from which you want a sample": [
        "tests/tools/test_brought_tokenizer.py::test_prepare_train_generate",
    ],
    "a state dict of another model": [
        "tests/export/test_official.py::test_what_does_not_fit_is_named",
    ],
    "MDS token sets (`tokens`, as arrays or bytes, compressed or not)": [
        "tests/data/test_tokens.py::test_every_form_gives_the_same_documents",
    ],
    "a damaged shard of such a set": [
        "tests/data/test_tokens.py::test_damaged_shards_are_named",
    ],
    "streams with proportions": [
        "tests/data/test_stream.py::test_a_mixture_keeps_its_shares_and_each_set_its_epochs",
    ],
    "several evaluation sets with labels": [
        "tests/train/test_eval_sets.py::test_each_set_has_its_curve_and_one_of_them_says_what_is_best",
    ],
    "fine-tuning rows of `prompt` and `response`, or `messages`": [
        "tests/data/test_chat_template.py::test_what_is_not_learned_carries_no_loss",
        "tests/data/test_pairs.py::test_every_conversation_stands_whole_in_a_sequence",
    ],
    "duplicates, very short and repetitive documents": [
        "tests/data/test_filters.py::test_a_set_counts_what_it_lacks",
    ],
    "a folder with Llama's tokenizer (`tokenizer.json`, `tokenizer_config.json`)": [
        "tests/data/test_huggingface_tokenizer.py::test_special_tokens_by_name",
    ],
    "a sentencepiece model with a dummy prefix and other special ids": [
        "tests/data/test_tokenizer.py::test_models_of_others",
    ],
    "a tokenizer that loses text (NFC, lower case)": [
        "tests/data/test_huggingface_tokenizer.py::test_what_loses_text_is_shown_and_taken_if_asked",
    ],
    "a data set of the hub, streamed (`hf:allenai/c4:en`)": [
        "tests/data/test_hub.py::test_hub",
        "tests/preparation/test_spread.py::test_pieces_of_a_hub_data_set",
    ],
    "a function that makes a text from a row": [
        "tests/data/test_sources.py::test_a_template_makes_one_text_of_several_columns",
    ],
    "Llama's weights": [
        "tests/export/test_hf.py::test_what_does_not_fit_is_named",
    ],
}
"""Tests of each row, by what it says that a user brings."""


def test_every_row_has_a_test_that_is_there():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in lines if not line.startswith("| what you bring")]
    assert {line.count("|") for line in rows} == {3}
    brought = [line.split("|")[1].strip() for line in rows]
    assert sorted(brought) == sorted(SHOWN_BY), "a row without a test, or a test without its row"
    for path, _, name in (test.partition("::") for tests in SHOWN_BY.values() for test in tests):
        body = ast.parse((ROOT / path).read_text()).body
        there = {node.name for node in body if isinstance(node, ast.FunctionDef)}
        assert name in there, f"{path} has no {name}"
