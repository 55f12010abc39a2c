"""tools/convert_checkpoint.py from the command line."""

import json
import shlex

import pytest


@pytest.fixture
def run(tool, tiny, tmp_path):
    """Train a run; return its directory."""
    changes = {"train": {"steps": 3, "warmup_steps": 1}, "eval": {"every_steps": 0}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", **changes)))
    assert tool("pretrain", "--config", config).status == 0
    return tmp_path / "run"


def test_export_and_import_generate_the_same_text(tool, run, tmp_path):
    hf, back = tmp_path / "hf", tmp_path / "back"
    done = tool("convert_checkpoint", "export", run, "--to", "hf", "--out", hf)
    assert (done.status, done.out) == (0, f"wrote {hf}\n")
    done = tool("convert_checkpoint", "import", hf, "--from", "hf", "--out", back)
    assert done.out.startswith(f"wrote {back / 'checkpoints' / 'step-00000003'}\n")
    said = [tool("generate", folder, "the cat", "--seed", 1).out for folder in (run, back)]
    assert said[0] == said[1]
    done = tool("convert_checkpoint", "export", run, "--to", "safetensors", "--out", tmp_path / "p")
    assert done.status == 0 and (tmp_path / "p" / "model.safetensors").is_file()


def test_a_folder_trains_on_with_the_command_that_is_said(tool, run, tiny, tmp_path):
    hf, back = tmp_path / "hf", tmp_path / "back"
    assert tool("convert_checkpoint", "export", run, "--to", "hf", "--out", hf).status == 0
    said = tool("convert_checkpoint", "import", hf, "--from", "hf", "--out", back).out
    command = shlex.split(said.splitlines()[1].partition("tools/pretrain.py ")[2])
    before = json.loads((run / "config.json").read_text())
    recipe = json.loads((back / "config.json").read_text())
    assert recipe["train"] == before["train"] and recipe["model"] == before["model"]
    done = tool("pretrain", *command)
    assert done.status == 2 and "DIR" in done.err
    (entry,) = tiny(run)["data"]["sets"]
    command = [word.replace("DIR", str(entry["path"])) for word in command]
    assert tool("pretrain", *command, "--set", "parallel.device=cpu").status == 0
    rows = (tmp_path / "back-on" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3


def test_the_card_says_what_is_known(tool, run, tmp_path):
    hf, template = tmp_path / "hf", tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    to = ("--to", "hf", "--out", hf, "--chat-template", template)
    assert tool("convert_checkpoint", "export", run, *to).status == 0
    card = (hf / "README.md").read_text()
    config = json.loads((run / "config.json").read_text())
    for said in ("2 of static", "| data | prepared |", "3 of 3", "48", "adamw", "from_pretrained"):
        assert said in card, said
    assert str(tmp_path) not in card and "None" not in card and "nan" not in card
    assert f"| tokens seen | {3 * 48 * config['train']['global_batch_size']:,} |" in card
    assert (hf / "chat_template.jinja").read_text() == template.read_text()
    assert json.loads((hf / "tokenizer_config.json").read_text())["model_max_length"] == 48


def test_mistakes_are_one_line(tool, run, tmp_path):
    def refused(*arguments):
        done = tool("convert_checkpoint", *arguments)
        assert done.status == 2 and done.err.startswith("error: "), done
        assert done.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return done.err

    out = ("--out", tmp_path / "out")
    to_hf, from_official = ("--to", "hf"), ("--from", "official")
    assert "holds no checkpoint" in refused("export", tmp_path / "none", *to_hf, *out)
    line = refused("export", run, *to_hf, "--out", run)
    assert "is not empty; expected a new or empty folder" in line
    file = tmp_path / "config.json"
    assert "is a file" in refused("export", run, *to_hf, "--out", file)
    assert "cannot be written" in refused("export", run, *to_hf, "--out", file / "below")
    line = refused("import", tmp_path / "none", "--from", "hf", *out)
    assert "config.json: no such file" in line
    line = refused("import", run / "none.pt", *from_official, *out)
    assert "--tokenizer is missing" in line
    tokenizer = ("--tokenizer", tmp_path / "none.model")
    line = refused("import", tmp_path / "none.pt", *from_official, *tokenizer, *out)
    assert "none.pt: no such file" in line
    line = refused("import", tmp_path, "--from", "universal", *tokenizer, *out)
    assert "--config is missing" in line
    line = refused("import", tmp_path, "--from", "universal", *tokenizer, "--config", file, *out)
    assert "has no folder zero" in line
