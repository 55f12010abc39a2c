"""Configs saved before a default changed: they mean the same runs, sweeps and tables as today's."""

import pytest

from gam_scale.config import RunConfig
from gam_scale.former_configs import in_todays_terms
from gam_scale.strict import from_dict, to_dict


def config(max_horizon: float) -> RunConfig:
    memory = {"max_horizon": max_horizon}
    return from_dict(RunConfig, {"model": {"memory": memory}, "data": {"seq_len": 48}})


@pytest.mark.parametrize("now", [0.0, 48.0])  # as it is asked for, and as a run resolves it
@pytest.mark.parametrize("saved", [0.0, 48.0, 65_536.0])
def test_a_horizon_that_nobody_set_is_todays(saved, now):
    assert in_todays_terms(to_dict(config(saved)), config(now)) == to_dict(config(now))


@pytest.mark.parametrize(("saved", "now"), [(512.0, 0.0), (65_536.0, 512.0), (0.0, 65_536.0)])
def test_a_horizon_that_was_set_stays(saved, now):
    assert in_todays_terms(to_dict(config(saved)), config(now)) == to_dict(config(saved))


@pytest.mark.parametrize(
    ("key", "part", "later"),
    [("norm", {"kind": "rmsnorm"}, "eps"), ("ffn", {"kind": "swiglu"}, "mult")],
)
def test_a_part_of_before_it_had_a_setting_is_todays(key, part, later):
    now = from_dict(RunConfig, {"model": {key: part}})
    saved = to_dict(now)
    assert later in saved["model"][key]
    del saved["model"][key][later]
    assert in_todays_terms(saved, now) == to_dict(now)
    saved["model"][key][later] = 7
    assert in_todays_terms(saved, now)["model"][key] == saved["model"][key], "another part"


def test_a_config_from_before_there_were_memories_stays():
    assert in_todays_terms({"model": {}}, config(0.0)) == {"model": {}}
