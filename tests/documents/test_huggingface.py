"""docs/huggingface.md from text to a merged adapter and back, on a tiny hybrid, as it stands."""

import json
import os

import pytest
import torch
from closeness import off
from conftest import sentences
from pages import QUICK, ROOT, blocks, commands, type_in
from pieces import train_pieces

from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.state import load_state
from gam_scale.export.hf_import import read_hf
from gam_scale.export.imported import write_checkpoint

PAGE = ROOT / "docs" / "huggingface.md"
SMALL = QUICK | {
    "model.d_model": 32,
    "model.attention.n_heads": 2,
    "model.memory.n_heads": 2,
    "train.steps": 6,
}
LOAD = {"trust_remote_code": True}


def llama_kind(folder):
    """Make a folder with a sentencepiece model of Llama 2's kind: a dummy prefix, <s>, </s>."""
    folder.mkdir(parents=True)
    train_pieces(folder, sentences(0, 60).splitlines(), "tokenizer", vocab_size=330)


def test_the_page_word_for_word(tmp_path, run_tool, monkeypatch):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft", reason="peft is missing; the extra hf has it")
    pytest.importorskip("accelerate", reason="accelerate is missing; the extra hf has it")
    monkeypatch.chdir(tmp_path)
    llama_kind(tmp_path / "data" / "llama")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "text.txt").write_text(sentences(1, 300))
    typed = [c.words for c in commands(PAGE) if any("runs/hybrid" in w for w in c.words)]
    run_tool(
        "prepare_data",
        "--train",
        "text.txt",
        "--tokenizer",
        "data/llama",
        "--out",
        "data/quickstart",
    )
    trained, served = blocks(PAGE, "python")
    code, given = trained.replace("=20", "=3"), {}
    for words in [words for words in typed if words[0] == "python"]:
        if "import" in words:
            exec(code, given)
        type_in(run_tool, words, SMALL, {})
    exec(served, given)
    assert given["new"].shape[0] == 2, "the page's batch was not continued"
    assert load_state(tmp_path / "runs/hybrid-back-on/checkpoints/step-00000006").step == 6

    # The imported model equals the merged one, and the base model with the saved adapter.
    ids = torch.tensor([given["tokenizer"](sentences(2, 2)).input_ids])
    back = load_trained("runs/hybrid-back")
    merged = transformers.AutoModelForCausalLM.from_pretrained("runs/hybrid-merged", **LOAD)
    base = transformers.AutoModelForCausalLM.from_pretrained("runs/hybrid-hf", **LOAD)
    with torch.no_grad():
        found, before = back.model(ids), base(ids).logits
        assert off(merged(ids).logits, found) < 1e-6 < off(before, found)
        import peft

        assert (
            off(peft.PeftModel.from_pretrained(base, "runs/hybrid-lora")(ids).logits, found) < 1e-5
        )
    assert back.tokenizer.encode("def a b") == load_trained("runs/hybrid").tokenizer.encode(
        "def a b"
    )

    # A checkpoint that Trainer itself wrote can be imported, too.
    arguments = transformers.TrainingArguments(
        "runs/whole", max_steps=2, save_steps=2, per_device_train_batch_size=1, report_to="none"
    )
    rows, tokenizer = given["rows"], given["tokenizer"]
    transformers.Trainer(merged, arguments, train_dataset=rows, processing_class=tokenizer).train()
    checkpoint = tmp_path / "runs/whole/checkpoint-2"
    assert json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] == 2
    again = write_checkpoint(read_hf(checkpoint, None), tmp_path / "runs/again")
    assert load_state(again).step == 8 and os.path.isfile("runs/again/config.json")
