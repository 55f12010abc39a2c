"""docs/fine_tuning.md from start to end, on a tiny model: its code and commands as they stand."""

import io
import json
import sys

import pytest
from pages import QUICK, ROOT, blocks, commands, type_in

from gam_scale.checkpoint.load import load_trained
from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import Conversation, Message
from gam_scale.export.hf_import import read_hf

PAGE = ROOT / "docs" / "fine_tuning.md"
SMALL = QUICK | {"model.d_model": 32, "model.n_layers": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepared_set, run_tool):
    """A folder in which all of the page but its last block was run, on another first data set."""
    folder, mocked = tmp_path_factory.mktemp("fine_tuning"), pytest.MonkeyPatch()
    (folder / "data").mkdir()
    (folder / "data" / "quickstart").symlink_to(prepared_set)
    (folder / "configs").symlink_to(ROOT / "configs")
    mocked.chdir(folder)
    try:
        rows, _ = blocks(PAGE, "python")
        exec(rows.replace('"*.py"', '"[a-c]*.py"'), {})  # some files will do
        for command in commands(PAGE):
            words = command.words
            if "python-stdlib" in words:
                continue
            if "tools/generate.py" in words:
                asked = io.TextIOWrapper(io.BytesIO(b"What is abc.ABC?\n"))
                mocked.setattr(sys, "stdin", asked)
                words += ["--max-tokens", "5"]
            if "tools/evaluate.py" in words:
                words += ["--json", f"{words[2].replace('/', '-')}.json"]
            steps = 12 if "runs/base" in words[-1] else 16
            type_in(run_tool, words, SMALL | {"train.steps": steps}, {})
    finally:
        mocked.undo()
    return folder


def test_answers_are_learned(folder):
    before, after = (
        json.loads((folder / f"runs-{name}.json").read_text()) for name in ("base", "answers")
    )
    manifest = json.loads((folder / "data/docstrings/manifest.json").read_text())
    answers = manifest["splits"]["valid"]["answers"]
    for measured in (before, after):
        assert (measured["tokens"], measured["bytes"]) == (answers["tokens"], answers["bytes"])
    assert after["loss"] < before["loss"] - 0.1


def test_the_export_has_the_template(folder):
    pytest.importorskip("transformers")
    trained = load_trained(folder / "runs/answers")
    assert trained.config.data.chat_template == DEFAULT
    assert load_trained(folder / "runs/base").config.data.chat_template == ""
    assert read_hf(folder / "runs/answers-hf", None).config.data.chat_template == DEFAULT
    _, code = blocks(PAGE, "python")
    given: dict = {}
    exec(code.replace("runs/", f"{folder}/runs/").replace("=60", "=2"), given)
    theirs, ours = given["tokenizer"], ChatTemplate(DEFAULT, trained.tokenizer)
    question = [Message("user", given["question"][0]["content"])]
    assert given["ids"]["input_ids"].tolist() == [ours.prompt(question)]
    talk = [*given["question"], {"role": "assistant", "content": "Ends (all).\n"}] * 2
    messages = [Message(m["role"], m["content"], m["role"] == "assistant") for m in talk]
    ids, _ = ours.encode(Conversation(tuple(messages)))
    assert theirs.apply_chat_template(talk)["input_ids"] == ids.tolist()
