"""docs/fine_tuning.md from start to end, on a tiny model: its code and commands as they stand."""

import io
import json
import sys

import pytest
from pages import ROOT, blocks, commands

from gam_scale.checkpoint.load import load_trained
from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import Conversation, Message
from gam_scale.export.hf_import import read_hf

PAGE = ROOT / "docs" / "fine_tuning.md"
SMALL = {
    "model.d_model": 32,
    "model.n_layers": 2,
    "train.warmup_steps": 2,
    "train.global_batch_size": 4,
    "eval.every_steps": 0,
    "log.wandb": "off",
    "log.tensorboard": "false",
    "parallel.engine": "torch",
    "parallel.device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, prepared_set, run_tool):
    """Where all of the page has been done but its last block, with another first set."""
    folder, mocked = tmp_path_factory.mktemp("fine_tuning"), pytest.MonkeyPatch()
    (folder / "data").mkdir()
    (folder / "data" / "quickstart").symlink_to(prepared_set)
    (folder / "configs").symlink_to(ROOT / "configs")
    mocked.chdir(folder)
    try:
        rows, _ = blocks(PAGE, "python")
        exec(rows.replace('"*.py"', '"[a-c]*.py"'), {})  # some will do
        for command in commands(PAGE):
            program, path, *words = command.words
            assert program == "python"
            if "python-stdlib" in words:
                continue
            tool = path.removeprefix("tools/").removesuffix(".py")
            if tool == "pretrain":
                small = SMALL | {"train.steps": 12 if "runs/base" in words[-1] else 16}
                words += [word for k, v in small.items() for word in ("--set", f"{k}={v}")]
            if tool == "generate":
                asked = io.TextIOWrapper(io.BytesIO(b"What is abc.ABC?\n"))
                mocked.setattr(sys, "stdin", asked)
                words += ["--max-tokens", "5"]
            if tool == "evaluate":
                words += ["--json", f"{words[0].replace('/', '-')}.json"]
            assert run_tool(tool, *words) == 0, command
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
