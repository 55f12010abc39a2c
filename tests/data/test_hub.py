"""Data sets of the Hugging Face hub, from a stand-in for the hub and from a local folder."""

import json
import sys
import types

import pytest

from gam_scale.data.rows import Reading
from gam_scale.data.sources import parse_source
from gam_scale.errors import UserError

TEXTS = ["first\ntext", "zweiter – Text\r\n", "  third  "]


def documents(spec, role="train", **options):
    return list(parse_source(spec, role, Reading(**options)).documents())


class Hub:
    """Stands in for the package ``datasets``; ``rows`` are what it loads, or an error to raise."""

    def __init__(self, rows):
        self.rows, self.calls = rows, []

    def load_dataset(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if isinstance(self.rows, Exception):
            raise self.rows
        return iter(self.rows)


def use_hub(monkeypatch, rows):
    hub = Hub(rows)
    module = types.SimpleNamespace(load_dataset=hub.load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


def test_hub(monkeypatch):
    hub = use_hub(monkeypatch, [{"text": "a"}, {"text": ""}, {"text": "b"}])
    assert documents("hf:own/er") == ["a", "b"]
    assert documents("hf:own/er:config", role="valid") == ["a", "b"]
    assert documents("hf:own/er::dev", role="valid") == ["a", "b"]
    assert [(args, kwargs["split"]) for args, kwargs in hub.calls] == [
        (("own/er", None), "train"),
        (("own/er", "config"), "validation"),
        (("own/er", None), "dev"),
    ]
    assert all(kwargs["streaming"] for _, kwargs in hub.calls)


def test_hub_failures(monkeypatch):
    use_hub(monkeypatch, ConnectionError("no route to the hub\nand much more"))
    with pytest.raises(UserError, match="hf:x:train: cannot be loaded .*no route to the hub"):
        documents("hf:x")
    use_hub(monkeypatch, [{"body": "a"}])
    with pytest.raises(UserError, match="no column 'text'.*'body'"):
        documents("hf:x")
    monkeypatch.setitem(sys.modules, "datasets", None)  # Python's mark of a missing module
    with pytest.raises(UserError, match=r"needs the package datasets; pip install 'gam-scale\[hub"):
        documents("hf:x")


def test_a_hub_data_set_in_a_local_folder(tmp_path):
    """A folder is named and streamed like a data set of the hub, which itself takes a network."""
    pytest.importorskip("datasets")
    for name, texts in (("train", TEXTS), ("test", TEXTS[:1])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(rows)
    assert documents(f"hf:{tmp_path}") == TEXTS
    assert documents(f"hf:{tmp_path}:default:test", template="{text}!") == [f"{TEXTS[0]}!"]
    assert documents(f"hf:{tmp_path}", "test") == TEXTS[:1]
