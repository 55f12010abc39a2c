"""What a sweep's run was made from: the code and the text, noted when it was begun, and its times.

A run's own folder has its settings but not the commit of the code, and names the text by its path,
where another text may be by now. The sweep writes both beside the run's config file.
"""

from dataclasses import dataclass, field
from pathlib import Path

from gam_scale.config import RunConfig
from gam_scale.data.manifest import MANIFEST_FILE
from gam_scale.experiment.code_version import code_version
from gam_scale.experiment.deciding import text_of
from gam_scale.files import write_json
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import read_starts
from gam_scale.run.metrics_file import read_metrics
from gam_scale.scaling.moments import moment
from gam_scale.strict import read_record, to_dict


@dataclass
class Origin:
    """The code and the text of one run; see :func:`note_origin`."""

    code_versions: list[str] = field(default_factory=list)
    """Of each time that the run was begun or continued, without repetitions."""
    text: str = ""
    """Hashes of the data; empty: the data was not there."""


def note_origin(config_path: Path, config: RunConfig) -> None:
    """Note beside a run's config file which code is about to train it, on which text."""
    path, now = _path(config_path), code_version()
    origin = read_origin(config_path)
    if now not in origin.code_versions[-1:]:
        origin.code_versions.append(now)
    origin.text = here_text(config) or origin.text
    write_json(path, to_dict(origin))


def read_origin(config_path: Path) -> Origin:
    """Return what was noted beside a run's config file; empty for runs of an earlier version."""
    path = _path(config_path)
    origin: Origin = read_record(Origin, path) if path.exists() else Origin()
    return origin


def here_text(config: RunConfig) -> str:
    """Return :func:`text_of` of a config's data; empty if the data is not here."""
    sets = config.data.sets
    there = bool(sets) and (Path(sets[0].path) / MANIFEST_FILE).exists()
    return text_of(config) if there else ""


def times(run: RunDir) -> tuple[str, str]:
    """Return when a run's first step was taken at the earliest, and when its last line was logged.

    A branch began with its trunk, whose lines it has. A moment that is not known is empty.
    """
    starts, lines = read_starts(run.starts), read_metrics(run.metrics)
    logged = [line["time"] for line in lines if line.get("time") is not None]
    began = [*(start.began for start in starts[:1]), *logged[:1]]
    return moment(min(began)) if began else "", moment(logged[-1]) if logged else ""


def _path(config_path: Path) -> Path:
    return config_path.with_suffix(".origin")
