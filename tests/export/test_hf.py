"""Test an exported folder in transformers, in a process that cannot import gam_scale."""

import json
import os
import subprocess
import sys

import pytest
import torch
from closeness import off
from safetensors.torch import load_file

from gam_scale.checkpoint.load import load_trained
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import load_config_of
from gam_scale.errors import UserError
from gam_scale.export.hf import export_hf, export_safetensors
from gam_scale.export.hf_import import read_hf
from gam_scale.export.imported import write_checkpoint

PROMPTS = [
    "the cat sees",
    "  a\t b\n\n c\r\n\ufb01 e\u0301 \x00\U0001f9d0 \u2581x <s> <unk> ",
    "",
]
NEW_TOKENS = 30

IN_TRANSFORMERS = """
import sys
sys.modules["gam_scale"] = None  # importing it fails
import json, os, torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

folder, out, prompts, new_tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), 30
load = dict(trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, **load)
model = AutoModelForCausalLM.from_pretrained(folder, **load)
for p in model.parameters():
    p.data = p.data.clone()  # mapped files may be aligned otherwise, and sums then round otherwise
texts = [tokenizer(text).input_ids for text in prompts]
decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in texts]

def continued(text, **options):
    inputs = tokenizer(text, return_tensors="pt", padding=True)
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **options)
    return ids[:, inputs.input_ids.shape[1]:].tolist()

ids = torch.tensor([texts[0]])
output = model(ids, labels=ids)
output.loss.backward()
results = {
    "ids": texts,
    "decoded": decoded,
    "with_special": tokenizer.decode(texts[0]),
    "greedy": continued(prompts[0]),
    "greedy_without_state": continued(prompts[0], use_cache=False),
    "padded": continued(["the dog runs under a tree", prompts[0]]),
    "beams": continued(prompts[0], num_beams=3),
    "beams_without_state": continued(prompts[0], num_beams=3, use_cache=False),
    "loss": output.loss.item(),
}
gradient = model.model.embedding.weight.grad
save_file({"logits": output.logits.detach(), "gradient": gradient}, out + ".safetensors")

model.resize_token_embeddings(330)
model.save_pretrained(out + "-saved", max_shard_size="50KB")
tokenizer.save_pretrained(out + "-saved")
again = AutoModelForCausalLM.from_pretrained(out + "-saved", **load)
results["saved_alike"] = torch.equal(again(ids).logits, model(ids).logits)
results["saved_ids"] = AutoTokenizer.from_pretrained(out + "-saved", **load)(prompts[1]).input_ids
fresh = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, **load), **load)
results["fresh_std"] = fresh.model.embedding.weight.std().item()
with open(out + ".json", "w") as file:
    json.dump(results, file)
os._exit(0)  # everything is written; what libraries do at interpreter exit is not under test
"""


def in_transformers(folder, out, tmp_path):
    """Run IN_TRANSFORMERS on an exported folder in a process of its own; return its results."""
    pytest.importorskip("transformers")
    here = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        IN_TRANSFORMERS,
        str(folder),
        str(out),
        json.dumps(PROMPTS),
    ]
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.with_suffix(".json").read_text())


def greedy_ids(trained, ids):
    """Return the greedy continuation by our own model."""
    found = []
    with torch.no_grad():
        logits, state = trained.model.extend(torch.tensor([ids]), trained.model.init_state())
        while len(found) < NEW_TOKENS:
            found.append(int(logits[0].argmax()))
            if found[-1] == trained.tokenizer.bos_id:
                break
            logits, state = trained.model.extend(torch.tensor([found[-1:]]), state)
    return found


@pytest.fixture
def one_thread():
    """Use one thread, as the other process does: sums over two may round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("block", ["gam", "hybrid", "attention", "mamba"])
def test_transformers_computes_what_we_do(checkpoint, tmp_path, block, one_thread):
    folder, out = tmp_path / "exported", tmp_path / "results"
    path = checkpoint(block)
    export_hf(path, folder)
    results = in_transformers(folder, out, tmp_path)
    trained = load_trained(path)
    tokenizer = trained.tokenizer
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in PROMPTS]
    assert results["ids"] == ids and results["saved_ids"] == ids[1]
    assert results["decoded"] == PROMPTS and results["with_special"] == f"<s>{PROMPTS[0]}"

    tokens = torch.tensor([ids[0]])
    tensors = load_file(out.with_suffix(".safetensors"))
    assert torch.equal(tensors["logits"], trained.model(tokens).detach())
    loss = trained.model(tokens[:, :-1], tokens[:, 1:]) / (tokens.numel() - 1)
    loss.backward()
    assert results["loss"] == pytest.approx(loss.item(), rel=1e-5)  # summed in another order
    # Layers with large weights amplify such a difference.
    assert off(tensors["gradient"], trained.model.embedding.weight.grad) < 1e-3

    (greedy,) = results["greedy"]
    assert greedy == greedy_ids(trained, ids[0])
    assert results["greedy_without_state"] == [greedy]
    assert results["padded"][1][: len(greedy)] == greedy
    assert results["beams"] == results["beams_without_state"]
    assert results["saved_alike"] and results["fresh_std"] == pytest.approx(0.02, rel=0.1)

    # Back to our format, after transformers added ten rows to embedding and head, in several files.
    back = write_checkpoint(read_hf(tmp_path / "results-saved", None), tmp_path / "back")
    model, its = load_trained(back).model, trained.model
    pairs = {"embedding": (model.embedding.weight, its.embedding.weight)}
    assert (model.head is None) == (its.head is None) == (block != "delta")
    pairs["head"] = (model.head_weight, its.head_weight)
    for name, (grown, before) in pairs.items():
        assert grown.shape == (330, 32) and torch.equal(grown[:320], before), name


def test_there_and_back_is_exact(checkpoint, tmp_path):
    path = checkpoint("gam")
    export_hf(path, tmp_path / "hf")
    back = write_checkpoint(read_hf(tmp_path / "hf", None), tmp_path / "back")
    assert back == tmp_path / "back" / "checkpoints" / "step-00000005"
    ours, theirs = load_trained(path), load_trained(tmp_path / "back")
    for (name, a), b in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert theirs.tokenizer.model_bytes == ours.tokenizer.model_bytes
    assert load_state(back).step == 5
    before, after = load_config_of(path), load_config_of(back)
    assert after.model == before.model
    assert after.data == before.data and after.train == before.train
    trainer = tmp_path / "hf" / "trainer_state.json"
    trainer.write_text(json.dumps({"global_step": 3}))
    later = write_checkpoint(read_hf(tmp_path / "hf", None), tmp_path / "later")
    assert later.name == "step-00000008" and load_state(later).step == 8
    trainer.write_text(json.dumps({"global_step": "x"}))
    with pytest.raises(UserError, match="global_step is 'x'; expected the number of steps"):
        read_hf(tmp_path / "hf", None)


def test_plain_safetensors(checkpoint, tmp_path):
    path = checkpoint("mamba")
    export_safetensors(path, tmp_path / "plain")
    names = {p.name for p in (tmp_path / "plain").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.model"}
    model = load_trained(path).model
    model.load_state_dict(load_file(tmp_path / "plain" / "model.safetensors"), strict=True)


def test_what_does_not_fit_is_named(checkpoint, tmp_path):
    folder = tmp_path / "hf"
    export_hf(checkpoint("gam"), folder)
    config = json.loads((folder / "config.json").read_text())

    def refuse(match, **changes):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UserError, match=match):
            write_checkpoint(read_hf(folder, None), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    refuse("model of type llama; expected gam_scale", model_type="llama")
    refuse(r"model.depth is not a setting", model=config["model"] | {"depth": 3})
    refuse("has no parameter blocks.2", model=config["model"] | {"n_layers": 3})
    refuse("blocks.1.* is not a parameter", model=config["model"] | {"n_layers": 1})
    refuse(r"embedding.weight has shape \(320, 32\); expected \(400, 32\)", vocab_size=400)
    refuse("has 320 ids but the model of .* only 300", vocab_size=300)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    refuse("model.safetensors is not a safetensors file or is damaged")
    (folder / "model.safetensors").unlink()
    refuse("model.safetensors: no such file")


def test_a_failed_export_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    from gam_scale.export import hf

    path = checkpoint("gam")
    monkeypatch.setattr(hf, "_save_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_hf(path, tmp_path / "made" / "hf")
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": []},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../weights.safetensors"}},
        {"weight_map": {"a": "/etc/x.safetensors"}},
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(checkpoint, tmp_path, index):
    export_hf(checkpoint("gam"), tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="has no weight_map of names to .safetensors files"):
        read_hf(tmp_path / "hf", None)
