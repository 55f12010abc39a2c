"""The longest initial horizon: the context's length unless set; far longer ones are warned of."""

import json
import re

import pytest
from whole_runs import killed_after, train

from gam_scale.errors import UserError

DELTA = {"memory": {"kind": "delta", "n_heads": 2}}
FAR = {"memory": {"kind": "delta", "n_heads": 2, "max_horizon": 65_536.0}}
RAVEN = {"kind": "raven", "n_heads": 2, "n_slots": 8, "top_k": 2}


def max_horizon(run) -> float:
    return json.loads((run / "config.json").read_text())["model"]["memory"]["max_horizon"]


def warned(capsys) -> bool:
    found = [line for line in capsys.readouterr().err.splitlines() if "max_horizon" in line]
    key = r"model\.(memory|layers\[0\])\.max_horizon"
    said = rf"{key} is [\d,]+: what forgets slowest does so over [\d,]+ tokens, far beyond .* 48"
    assert all(re.search(said, line) for line in found)
    return bool(found)


@pytest.mark.parametrize(
    ("model", "horizon", "says"),
    [
        (DELTA, 48.0, False),
        (FAR, 65_536.0, True),
        # A single head has the middle of 16 and 65,536.
        ({"memory": FAR["memory"] | {"n_heads": 1}}, 65_536.0, True),
        ({"memory": FAR["memory"] | {"kind": "static"}}, 65_536.0, False),
        (FAR | {"layers": ["attention"]}, 65_536.0, False),
        ({"layers": [{"kind": "delta", "n_heads": 2, "max_horizon": 65_536.0}]}, 48.0, True),
        # 100 writes to a slot, to which one token in four writes.
        ({"layers": [RAVEN | {"max_horizon": 100.0}]}, 48.0, True),
        ({"layers": [RAVEN | {"max_horizon": 40.0}]}, 48.0, False),
    ],
)
def test_a_horizon_far_beyond_the_sequence_is_warned_of(
    tmp_path, tiny, capsys, model, horizon, says
):
    with killed_after(1):
        train(tiny(tmp_path / "run", model=model))
    assert (max_horizon(tmp_path / "run"), warned(capsys)) == (horizon, says)


def test_a_run_from_before_horizons_followed_the_context_goes_on(tmp_path, tiny, capsys):
    run = tmp_path / "run"
    with killed_after(7):
        train(tiny(run, model=FAR))
    assert warned(capsys)
    with killed_after(9):
        train(tiny(run, model=DELTA))  # a config that, like the old run's, sets no horizon
    assert not warned(capsys)  # it is too late to change it
    with pytest.raises(UserError, match=r"max_horizon is 512.0 but the run .* has"):
        train(tiny(run, model={"memory": DELTA["memory"] | {"max_horizon": 512.0}}))
