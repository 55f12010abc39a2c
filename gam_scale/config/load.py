"""Reading a config file, and checking it as a whole."""

from collections.abc import Sequence
from pathlib import Path

from gam_scale.config.rules import check
from gam_scale.config.sections import RunConfig
from gam_scale.config.stages import with_steps
from gam_scale.strict import apply_overrides, from_dict, read_json


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a JSON config, apply ``section.key=value`` overrides, check it as a whole.

    Raises:
        UserError: what is wrong, in one sentence, before anything else is loaded.
    """
    config = with_steps(from_dict(RunConfig, apply_overrides(read_json(path), overrides)))
    check(config)
    return config
