"""What decides a cell's row: the settings that are not defaults, and the text."""

from typing import Any

from gam_scale.config import RunConfig
from gam_scale.data.manifest import read_manifest
from gam_scale.experiment.cell import DECIDE
from gam_scale.strict import to_dict


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide a row, without defaults and without the text's path."""
    own = without_defaults(to_dict(config), to_dict(RunConfig()))
    own["data"] = {key: value for key, value in own["data"].items() if key != "sets"}
    return {section: own[section] for section in DECIDE if section in own}


def text_of(config: RunConfig) -> str:
    """Identify text and tokenizer by the first digits of the hashes of tokenizer and splits."""
    manifest = read_manifest(config.data.sets[0].path)
    splits = [manifest.splits[name].index_sha256 for name in sorted(manifest.splits)]
    return "-".join(digest[:8] for digest in (manifest.tokenizer.sha256, *splits))


def without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that are not defaults; a part of another ``kind`` stays whole."""
    differing = {}
    for key, value in values.items():
        default = defaults.get(key)
        if value == default and key in defaults:
            continue
        if isinstance(value, dict) and isinstance(default, dict):
            same_kind = value.get("kind") == default.get("kind")
            differing[key] = without_defaults(value, default) if same_kind else value
        else:
            differing[key] = value
    return differing
