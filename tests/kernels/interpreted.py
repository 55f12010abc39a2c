"""Run flash-linear-attention's kernels in Triton's interpreter, against float64 recurrences.

This is a program for a process of its own. ``python interpreted.py KINDS FOLDER`` prints JSON: for
each of the comma-separated KINDS, the relative errors of outputs, final states and each gradient.
It writes a copy of the package to FOLDER.
"""

import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

WIDTH, SLOTS = 16, 16  # the least that the kernels' products take


def copied(folder: Path) -> None:
    """Copy fla, changed for the interpreter, in whose loops the variables are plain numbers."""
    installed = Path(find_spec("fla").origin).parent
    shutil.copytree(installed, folder / "fla", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("chunk_delta_h.py", "chunk_h.py"):
        file = folder / "fla/ops/common" / name
        text = file.read_text()
        assert text.count("= i_t.to(tl.int64)") == 2, "written for another version of the package"
        file.write_text(text.replace("= i_t.to(tl.int64)", "= i_t"))


def without_tuning() -> None:
    """Run kernels in their first configuration; the interpreter would time all of them."""
    from triton.runtime.autotuner import Autotuner

    def run(self, *args, **options):
        return self.fn.run(*args, **options, **self.configs[0].all_kwargs())

    Autotuner.run = run


def differences(kind: str) -> dict[str, float]:
    """Return a float32 operator's relative errors against the recurrence in float64, by name."""
    import recurrences
    import torch
    from closeness import off
    from packed import packed_inputs, results

    from gam_scale.kernels.channel_delta import fla_channel_delta
    from gam_scale.kernels.delta import fla_delta
    from gam_scale.kernels.slot import fla_slot

    inputs, where, positions = packed_inputs(kind, heads=1, width=WIDTH, slots=SLOTS)
    channel = (fla_channel_delta, recurrences.erasing_delta)
    operators = {"delta": (fla_delta, recurrences.delta), "slot": (fla_slot, recurrences.slot)}
    operator, oracle = operators.get(kind, channel)
    found = results(lambda *leaves: operator(*leaves, *where), inputs)
    exact = results(
        lambda *leaves: oracle(*leaves, positions), {k: x.double() for k, x in inputs.items()}
    )
    assert all(x.dtype == torch.float32 for x in found.values())
    return {name: off(found[name], exact[name]) for name in exact}


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"
    copied(Path(sys.argv[2]))
    sys.path.insert(0, sys.argv[2])
    without_tuning()
    print(json.dumps({kind: differences(kind) for kind in sys.argv[1].split(",")}))
