"""docs/configs.md, made from the settings' own documentation: python docs/site/settings_page.py"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from gam_scale.config import RunConfig
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS
from gam_scale.strict import describe

PAGE = Path(__file__).resolve().parents[1] / "configs.md"
SHARED = 3
"""A setting that so many kinds of layer have alike stands in one table for all of them."""

Row = tuple[str, str, str, str]
"""A setting's key, type, default and documentation, as ``describe`` gives them."""

HEAD = """# Every setting

<!-- Made by `python docs/site/settings_page.py` from the code; edit the fields' own text there. -->

A run is configured by one JSON file of the sections below. What a file leaves out has the default.
`--set section.key=value` changes one setting of it on the command line, again and again if need be;
values are JSON; anything else is taken as a string. An unknown key, a value of another type or one
out of bounds is refused in a sentence that says what is accepted. The complete configuration of a
run stands in its `config.json`. `python tools/pretrain.py --help-config` prints the same as text.

```bash
python tools/pretrain.py --config configs/quickstart.json --set train.steps=300 \\
    --set 'model.layers=["delta", "delta", "delta", "attention"]' --set log.run_dir=runs/mixed
```

The shipped files: `configs/quickstart.json` (a CPU, seconds), `configs/ctx16k.json`,
`configs/ctx16k_hybrid.json` and `configs/ctx64k.json` ([long contexts](long_context.md)),
`configs/gam_1b.json` ([on a cluster](cluster.md), with the reasons for its numbers),
`configs/paper/` ([the models](models.md)), `configs/sweeps/` ([scaling laws](scaling_laws.md)) and
`configs/compare/` ([comparisons](comparisons.md)).
"""

LAYERS = """## Kinds of layer

`model.layers` is a pattern of these, repeated over `model.n_layers`. A kind by its name takes some
of its settings from sections that kinds share; all others have the defaults from here:

* `static` from `model.gam`;
* `slot`, `raven`, `delta`, `phase` and `scan` from `model.gam` and `model.memory`;
* `gdn`, `kda`, `gdn2` and `gam_delta` from `model.memory` alone;
* `attention` from `model.attention`, `mamba` from `model.mamba`, and `mamba2` from none.

An object has settings of its own, and takes nothing from these sections:
`{"kind": "delta", "n_heads": 12, "ffn": {"kind": "swiglu"}}`. [Memories](memories.md) says what
each kind computes, and [the models](models.md) how to choose.
"""

COLUMNS = "| setting | type | default | what it means |\n|---|---|---|---|"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    sections: dict[str, list[Row]] = {}
    for key, *rest in describe(RunConfig):
        sections.setdefault(key.partition(".")[0], []).append((key, *rest))  # type: ignore[arg-type]
    for name, rows in sections.items():
        parts.append(f"## {name}\n\n{table(rows)}")
    parts += [LAYERS, *layers()]
    for title, registry in (("Feed-forward networks", FEED_FORWARDS), ("Norms", NORMS)):
        parts.append(f"## {title}\n")
        parts += [kind_of(kind, describe(registry[kind])) for kind in registry]
    return "\n".join(parts).rstrip() + "\n"


def layers() -> Iterable[str]:
    """What several kinds of layer share, then what each has of its own."""
    kinds = {kind: describe(MIXERS[kind]) for kind in MIXERS}
    alike: dict[tuple[str, str, str], dict[str, str]] = {}
    for kind, rows in kinds.items():
        for key, form, default, doc in rows:
            alike.setdefault((key, form, doc), {})[kind] = default
    shared = {what: of for what, of in alike.items() if len(of) >= SHARED}
    yield f"### Shared by several kinds\n\n{COLUMNS}"
    for (key, form, doc), of in shared.items():
        yield line(key, form, defaults(of, len(kinds)), doc)
    yield ""
    for kind, rows in kinds.items():
        yield kind_of(kind, [row for row in rows if (row[0], row[1], row[3]) not in shared])


def defaults(of: dict[str, str], all_kinds: int) -> str:
    """A default of each kind, where kinds differ, or where not all have the setting."""
    by_value: dict[str, list[str]] = {}
    for kind, default in of.items():
        by_value.setdefault(default, []).append(kind)
    if len(by_value) == 1 and len(of) == all_kinds:
        return f"`{next(iter(by_value))}`"
    return "; ".join(f"`{value}` ({', '.join(kinds)})" for value, kinds in by_value.items())


def kind_of(kind: str, rows: list[Row]) -> str:
    """A kind's heading and its own settings."""
    return f"### `{kind}`\n\n{table(rows) if rows else 'No settings of its own.' + chr(10)}"


def table(rows: list[Row]) -> str:
    """Settings, one a line."""
    return f"{COLUMNS}\n" + "".join(f"{line(k, form, f'`{d}`', doc)}\n" for k, form, d, doc in rows)


def line(key: str, form: str, default: str, doc: str) -> str:
    """A row of a table; a bar within a cell would end it."""
    cells = (f"`{key}`", form.replace("|", "or"), default, doc.replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
