"""What the sets of a run are called where one of them is meant."""

from pathlib import PurePath

from gam_scale.config.sections import DataConfig, RunConfig


def set_names(data: DataConfig) -> list[str]:
    """Of each of ``data.sets``: the last part of its path, where no other set shares that."""
    last = [PurePath(entry.path).name or entry.path for entry in data.sets]
    return [
        name if last.count(name) == 1 else entry.path
        for entry, name in zip(data.sets, last, strict=True)
    ]


def validated_names(config: RunConfig) -> list[str]:
    """Of what may have a validation loss of its own: several ``data.sets``, and ``eval.sets``."""
    several = set_names(config.data) if len(config.data.sets) > 1 else []
    return [*several, *config.eval.sets]
