"""Test lm-evaluation-harness on an exported folder: its command finds what our tools find."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import sentences  # of tests/

from gam_scale.checkpoint.load import load_trained
from gam_scale.export.hf import export_hf

pytest.importorskip("lm_eval", reason="lm_eval is missing; the extra lm-eval has it")

from transformers import AutoTokenizer  # noqa: E402

LENGTH = 48  # the models' max_seq_len
TEXT = sentences(99, 150)
MC = [
    {"query": "the cat", "choices": [" sees", " runs under a tree.", " x"], "label": 0},
    {"query": " ".join(TEXT.split()[:60]), "choices": [" likes the bird", " and"], "label": 1},
]
PROMPTS = ["the cat sees", "a dog"]
NEW_TOKENS = 36  # with the prompt, about LENGTH tokens
TASKS = {
    "mc": (
        "multiple_choice",
        'doc_to_text: "{{query}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: label\n'
        'target_delimiter: ""\nmetric_list:\n  - metric: acc\n',
    ),
    "text": (
        "loglikelihood_rolling",
        'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list:\n  - metric: bits_per_byte\n',
    ),
    "prompts": (
        "generate_until",
        'doc_to_text: "{{query}}"\ndoc_to_target: "x"\ngeneration_kwargs:\n'
        f'  until: ["never"]\n  max_gen_toks: {NEW_TOKENS}\n  do_sample: false\n'
        "metric_list:\n  - metric: exact_match\n",
    ),
}
ROWS = {"mc": MC, "text": [{"text": TEXT}], "prompts": [{"query": text} for text in PROMPTS]}


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    for name, (output, rest) in TASKS.items():
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        (folder / f"{name}.yaml").write_text(
            f"task: own_{name}\ndataset_path: json\nvalidation_split: validation\n"
            f"dataset_kwargs:\n  data_files:\n    validation: {rows}\noutput_type: {output}\n{rest}"
        )


def lm_eval(folder: Path, tasks: Path, names: list[str], more: str = "") -> tuple[dict, dict]:
    """Run the harness; return results by task, and each task's questions with their answers."""
    out = tasks.parent / f"out{more}"
    arguments = f"pretrained={folder},trust_remote_code=True{more}"
    here = {"HF_HOME": str(tasks.parent / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", arguments]
    command += ["--include_path", str(tasks), "--tasks", ",".join(names), "--device", "cpu"]
    command += ["--batch_size", "4", "--output_path", str(out), "--log_samples"]
    done = subprocess.run(command, env=os.environ | here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = out.glob("*/results*.json")
    samples = {}
    for name in names:
        (file,) = out.glob(f"*/samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


def likelihood(trained, query: str, answer: str) -> float:
    """Return an answer's log-likelihood in nats after the last tokens of the query that fit."""
    tokenizer = trained.tokenizer
    whole = [tokenizer.bos_id, *tokenizer.encode(query + answer)]
    n = len(whole) - 1 - len(tokenizer.encode(query))
    ids = torch.tensor([whole[-LENGTH - 1 :]])
    with torch.no_grad():
        log_probs = trained.model(ids[:, :-1]).log_softmax(-1)
    return float(log_probs.gather(-1, ids[:, 1:, None])[0, -n:].sum())


@pytest.mark.lm_eval
@pytest.mark.parametrize("block", ["gam_delta", "hybrid"])
def test_choices_texts_and_generation(checkpoint, tmp_path, run_tool, capsys, block):
    path, folder, tasks = checkpoint(block), tmp_path / "hf", tmp_path / "tasks"
    export_hf(path, folder)
    write_tasks(tasks)
    _, samples = lm_eval(folder, tasks, ["own_mc", "own_prompts"])
    trained = load_trained(path)
    theirs = AutoTokenizer.from_pretrained(folder)
    for row, sample in zip(MC, samples["own_mc"], strict=True):
        for answer, (found, _) in zip(row["choices"], sample["filtered_resps"], strict=True):
            expected = likelihood(trained, row["query"], answer)
            assert float(found) == pytest.approx(expected, abs=1e-3)
    for prompt, sample in zip(PROMPTS, samples["own_prompts"], strict=True):
        ids = greedy(trained, prompt)  # may be invalid UTF-8, so their tokenizer decodes
        assert sample["filtered_resps"] == [theirs.decode(ids, skip_special_tokens=True)]
    (tmp_path / "text.txt").write_text(TEXT)
    capsys.readouterr()
    assert run_tool("evaluate", path, "--text", tmp_path / "text.txt", "--json") == 0
    ours = json.loads(capsys.readouterr().out)["bits_per_byte"]
    # For rolling likelihoods the harness adds a <s> of its own; the tokenizer has added one.
    results, _ = lm_eval(folder, tasks, ["own_text"], ",add_bos_token=False")
    assert results["own_text"]["bits_per_byte,none"] == pytest.approx(ours, rel=2e-3)


def greedy(trained, prompt: str) -> list[int]:
    """Return our own model's greedy continuation, up to the end of the document."""
    ids = [trained.tokenizer.bos_id, *trained.tokenizer.encode(prompt)]
    found: list[int] = []
    with torch.no_grad():
        logits, state = trained.model.extend(torch.tensor([ids]), trained.model.init_state())
        while len(found) < NEW_TOKENS:
            token = int(logits[0].argmax())
            if token == trained.tokenizer.bos_id:
                break
            found.append(token)
            logits, state = trained.model.extend(torch.tensor([[token]]), state)
    assert math.isfinite(float(logits.sum()))
    return found
