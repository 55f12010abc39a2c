"""The numbers that a run has for "auto" settings, chosen once, when the run begins."""

from pathlib import Path
from typing import Any

from gam_scale.config import RunConfig, TrainConfig
from gam_scale.files import write_json
from gam_scale.hyperparameters import Chosen, auto_settings
from gam_scale.run.directory import RunDir
from gam_scale.strict import from_dict, read_json, read_record, to_dict


def numbers_of_begun_run(run: RunDir, config: RunConfig, *, fresh: bool) -> dict[str, float]:
    """Return the numbers that a run, or its trunk, already has for what is "auto" in ``config``.

    Args:
        run: the run's directory.
        config: the config to go on with.
        fresh: whether ``--fresh`` was given, which may remove the earlier run.

    Returns:
        Numbers by the name of the setting in the train section; none for a run that begins, also
        if an earlier start of it has saved no checkpoint.
    """
    source, trunk, names = run.config, config.checkpoint.branch_of, auto_settings(config.train)
    begun = run.has_begun and not (fresh and run.fresh_removes())
    if trunk and not begun:
        source, begun = RunDir(trunk).config, RunDir(trunk).config.exists()
    if not (begun and names):
        return {}
    saved = read_json(source)
    train: Any = saved.get("train") if isinstance(saved, dict) else None
    values = {k: v for k, v in train.items() if k in names} if isinstance(train, dict) else {}
    known = from_dict(TrainConfig, values, f"{source}: train")
    return {name: getattr(known, name) for name in names}


def note_chosen(run: RunDir, config: RunConfig, chosen: Chosen | None) -> None:
    """Write chosen.json for a run that begins; a branch takes over its trunk's."""
    if chosen is None and not run.has_begun:
        run.chosen.unlink(missing_ok=True)  # an earlier start's, which saved no checkpoint
    trunk = RunDir(config.checkpoint.branch_of) if config.checkpoint.branch_of else None
    if chosen is None and trunk is not None and not run.chosen.exists():
        chosen = read_chosen(trunk.chosen)
    if chosen is not None:
        write_json(run.chosen, to_dict(chosen))


def read_chosen(path: Path) -> Chosen | None:
    """Return what the rules chose for a run; None if all settings were given as numbers."""
    return read_record(Chosen, path) if path.exists() else None
