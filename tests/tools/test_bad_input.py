"""A user's mistake: one line that names it, a non-zero exit, no traceback."""

import io
import json

import pytest
from whole_runs import reseal

from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source

CONFIG = {
    "model": {"d_model": 16, "n_layers": 1, "max_seq_len": 48, "gam": {"n_slots": 4}},
    "train": {"steps": 3, "global_batch_size": 2, "warmup_steps": 1, "compile": "off"},
    "parallel": {"engine": "torch", "device": "cpu"},
    "log": {"wandb": "off", "tensorboard": False},
}


@pytest.fixture
def refused(tool, tmp_path):
    """Return a function that runs a tool, which must refuse, and returns the tool's one line."""

    def run(name, *arguments):
        done = tool(name, *arguments)
        assert done.status == 2, done
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and "Traceback" not in done.err, done.err
        return lines[0]

    return run


@pytest.fixture
def config(tmp_path, prepared_set):
    """Return ``config(section={...})``, which writes the config file of a tiny run."""

    def write(**changes):
        data = json.loads(json.dumps(CONFIG))
        data["data"] = {"sets": [{"path": str(prepared_set)}], "seq_len": 48}
        data["log"]["run_dir"] = str(tmp_path / "run")
        for section, values in changes.items():
            data[section] |= values
        path = tmp_path / "config.json"
        path.write_text(json.dumps(data))
        return path

    return write


def test_no_config(refused, tmp_path):
    assert "--config is missing" in refused("pretrain")
    assert "none.json: no such file" in refused("pretrain", "--config", tmp_path / "none.json")


def test_context_longer_than_the_positions(refused, config):
    line = refused("pretrain", "--config", config(data={"seq_len": 64}))
    assert "data.seq_len is 64" in line and "48" in line


def test_data_that_is_not_there_or_not_prepared(refused, config, tmp_path):
    line = refused("pretrain", "--config", config(data={"sets": [{"path": str(tmp_path / "no")}]}))
    assert str(tmp_path / "no") in line
    (tmp_path / "plain").mkdir()
    sets = [{"path": str(tmp_path / "plain")}]
    assert "manifest.json" in refused("pretrain", "--config", config(data={"sets": sets}))


def test_corpus_shorter_than_one_sequence(refused, config, tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("a few words only")
    source = parse_source(str(tmp_path / "*.txt"))
    prepare(PrepareSpec(tmp_path / "short", [source], vocab_size=275, valid_fraction=0.1))
    sets = [{"path": str(tmp_path / "short")}]
    line = refused("pretrain", "--config", config(data={"sets": sets}))
    assert "too few for one sequence" in line and "data.seq_len" in line


def test_vocabulary_smaller_than_the_tokenizers(refused, config):
    line = refused("pretrain", "--config", config(model={"vocab_size": 100}))
    assert "model.vocab_size is 100 but the tokenizer has 320 ids" in line


def test_preparing_nothing_or_too_little(refused, tmp_path):
    out = tmp_path / "out"
    assert "none" in refused("prepare_data", "--train", tmp_path / "none*.txt", "--out", out)
    (tmp_path / "empty.txt").write_text("")
    refused("prepare_data", "--train", tmp_path / "empty.txt", "--out", out)
    (tmp_path / "small.txt").write_text("a small text")
    small = ("--train", tmp_path / "small.txt", "--valid-fraction", 0, "--out", out)
    line = refused("prepare_data", *small, "--vocab-size", 5000)
    assert "a vocabulary of 5000 is too large for this text" in line
    assert not out.exists()


def test_a_checkpoint_that_is_none_or_of_another_shape(refused, config, tool, tmp_path):
    assert "holds no checkpoint" in refused("generate", tmp_path)
    assert "holds no checkpoint" in refused("evaluate", tmp_path)
    assert tool("pretrain", "--config", config()).status == 0
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    saved = json.loads((checkpoint / "config.json").read_text())
    saved["model"]["d_model"] = 32
    text = json.dumps(saved)
    (checkpoint / "config.json").write_text(text)
    line = refused("generate", checkpoint)
    assert "config.json differs from what was saved" in line
    reseal(checkpoint)
    assert "has shape" in refused("generate", checkpoint)


def test_a_damaged_shard_is_named(refused, config, prepared_set, tmp_path):
    import shutil

    shutil.copytree(prepared_set, tmp_path / "copy")
    shard = tmp_path / "copy" / "train" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-10])
    sets = [{"path": str(tmp_path / "copy")}]
    line = refused("pretrain", "--config", config(data={"sets": sets}))
    assert "shard.00000.mds" in line


def test_a_prompt_that_is_no_text(refused, tmp_path, monkeypatch):
    assert "the prompt has bytes that are not UTF-8" in refused("generate", tmp_path, "a\udcff")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    assert "the prompt has bytes that are not UTF-8" in refused("generate", tmp_path, "-")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--temperature", "-1"), "--temperature is -1; expected a finite number, at least 0"),
        (("--top-p", "0"), "--top-p is 0; expected a finite number, more than 0"),
        (("--top-k", "-2"), "--top-k is -2; expected a whole number, at least 0"),
        (("--max-tokens", "0"), "--max-tokens is 0; expected a whole number, at least 1"),
    ],
)
def test_generation_settings(refused, tmp_path, arguments, message):
    assert message in refused("generate", tmp_path, *arguments)
