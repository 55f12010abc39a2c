"""Names by which settings and metrics refer to a run's data sets."""

from pathlib import PurePath

from gam_scale.config.sections import DataConfig, RunConfig


def set_names(data: DataConfig) -> list[str]:
    """Return each set's name: the last part of its path, or all of its path if sets share that."""
    last = [PurePath(entry.path).name or entry.path for entry in data.sets]
    return [
        name if last.count(name) == 1 else entry.path
        for entry, name in zip(data.sets, last, strict=True)
    ]


def validated_names(config: RunConfig) -> list[str]:
    """Return the names with their own validation loss: several ``data.sets``, and ``eval.sets``."""
    several = set_names(config.data) if len(config.data.sets) > 1 else []
    return [*several, *config.eval.sets]
