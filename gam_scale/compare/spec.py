"""A comparison: named models, what they learn, and how each is tuned, from one strict JSON file.

There are two kinds. ``task`` trains small models on synthetic tasks
(:mod:`gam_scale.evaluate.tasks`), each at every learning rate. ``text`` trains language models at
every learning rate on few tokens, then at the best rate on many, then the best models from further
seeds; in the end it measures the trained models. While the best rate is the lowest or highest of
those tried, a further one is tried, at most ``widen`` of them. Instead of new models, a text
comparison may continue models of another one (``start``), for example at a longer context.
configs/compare/ has examples; docs/comparisons.md says what they ask.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gam_scale.config import RunConfig
from gam_scale.errors import UserError, one_line
from gam_scale.strict import AUTO, from_dict, option, read_json, section, to_dict


@dataclass
class TaskEntry:
    """A synthetic task, and which models learn it."""

    recall: dict[str, Any] = option(
        {}, "settings of the task, as --set recall.KEY=VALUE of tools/evaluate.py"
    )
    models: list[str] = option([], "names of the models that learn it; empty: all")
    widths: list[int] = option(
        [], "values of model.d_model, with a model for each; empty: the model's own"
    )
    own_widths: dict[str, list[int]] = option(
        {}, "widths of single models by name, instead of widths"
    )


@dataclass
class TaskSpec:
    """A comparison of models that learn synthetic tasks."""

    kind: Literal["task"] = option("task", "task")
    tasks: dict[str, TaskEntry] = option({}, "tasks, by names of your choice")
    model: dict[str, Any] = option({}, "settings of the model section that all models share")
    models: dict[str, dict[str, Any]] = option(
        {}, "models by name, each with its own settings of the model section"
    )
    lrs: list[float] = option([1e-3, 3e-3, 1e-2], "peak learning rates", above=0)
    widen: int = option(
        1,
        "most further rates, tried one by one while the best is the lowest or highest tried",
        at_least=0,
    )
    seeds: list[int] = option(
        [0], "seeds; the first tunes the rate, all train at the best one", at_least=0
    )


@dataclass
class ModelEntry:
    """A language model, and how it is brought to the common size."""

    model: dict[str, Any] = option({}, "the model's own settings of the model section")
    train: dict[str, Any] = option(
        {}, "the model's own settings of the train section, such as its optimizer"
    )
    lrs: list[float] = option(
        [], "the model's own peak learning rates; empty: those of the file", above=0
    )
    full_lrs: list[float] = option(
        [],
        "further rates of full runs beside the best tuned one, which may be too high because "
        "tuning has fewer steps; the model's figures are those of its best full run",
        above=0,
    )
    against: str = option(
        "",
        "model whose final loss this one is to reach; the page says after how many tokens and "
        "seconds; empty: the reference, if there is one",
    )
    fit: dict[str, list[float]] = option(
        {},
        'by "KIND.SETTING" of its layers, the values that this setting may take; those that bring '
        "the state nearest to size.state are taken",
    )
    state: Literal["equal", "own"] = option(
        "equal",
        "equal: the model is refused unless its state is size.state; own: any state, for attention "
        "and models without one",
    )


@dataclass
class SizeSpec:
    """The size that all models are brought to."""

    parameters: int = option(
        0,
        "trainable numbers without embeddings and head, reached by the width of the feed-forward "
        "networks; 0: as many as each model has",
        at_least=0,
    )
    state: int = option(
        0, "numbers that the memories of all layers hold; 0: as many as each model has", at_least=0
    )
    tolerance: float = option(0.01, "relative difference that counts as equal", at_least=0)


@dataclass
class MeasureSpec:
    """What is measured of every model that was trained in full."""

    positions: list[int] = option(
        [], "lengths in tokens at which loss by position is measured", at_least=2
    )
    hidden: list[int] = option(
        [], "lengths in tokens of the texts in which needles and pairs are hidden", at_least=2
    )
    pairs: list[int] = option(
        [4], "numbers of sentences in key-value retrieval; empty: not measured", at_least=2
    )
    depths: list[float] = option(
        [0, 0.25, 0.5, 0.75, 1],
        "depths of needles, from 0, the start of the text, to 1, its end",
        at_least=0,
        at_most=1,
    )
    trials: int = option(20, "texts of each length, depth and number of pairs", at_least=2)
    max_tokens: int = option(
        262_144, "validation tokens to read for loss by position; 0: all", at_least=0
    )
    context: int = option(
        0, "tokens of the windows for the effective context; 0: not measured", at_least=0
    )


@dataclass
class TextSpec:
    """A comparison of language models."""

    kind: Literal["text"] = option("text", "text")
    data: str = option("data/books", "folder of a prepared set, which tools/prepare_data.py wrote")
    set: dict[str, dict[str, Any]] = option({}, "settings of every run, by section of its config")
    models: dict[str, ModelEntry] = option({}, "models by name")
    start: list[str] = option(
        [],
        "instead of models: names of models of another comparison (--start), whose runs of the "
        "first seed are continued",
    )
    start_best: int = option(
        0,
        "number of models to continue beside those of start: the ones without attention whose "
        "validation loss was lowest",
        at_least=0,
    )
    size: SizeSpec = section(SizeSpec, "the common size")
    tokens: float = option(
        1e6, "tokens of a full run; 0: no full runs, only rates are compared", at_least=0
    )
    tune_tokens: float = option(
        0, "tokens of a run that tunes; 0: no tuning, with a single learning rate", at_least=0
    )
    lrs: list[float] = option([1e-3, 2e-3, 4e-3], "peak learning rates", above=0)
    times_auto: bool = option(
        False, "lrs are multiples of the rate that train.lr auto chooses for each model and budget"
    )
    widen: int = option(
        1,
        "most further rates, tuned one by one while the best is the lowest or highest tuned",
        at_least=0,
    )
    warmup: float = option(
        0.05,
        "warm-up as a share of the steps, unless set has train.warmup_steps auto",
        at_least=0,
        below=1,
    )
    seeds: list[int] = option(
        [0],
        "seeds; the first tunes and trains all models in full, the others repeat the best run of "
        "each",
        at_least=0,
    )
    repeat: int = option(
        0, "number of models, the best ones, that further seeds repeat; 0: all", at_least=0
    )
    reference: str = option("", "model that the others are compared with; empty: the best")
    measure: MeasureSpec = section(MeasureSpec, "what is measured at the end")

    def entry(self, name: str) -> ModelEntry:
        """Return the entry of a model; it is empty for a model of another comparison."""
        return self.models.get(name, ModelEntry())

    def lrs_of(self, name: str) -> list[float]:
        """Return the rates at which a model is tuned first."""
        return self.entry(name).lrs or self.lrs


Spec = TaskSpec | TextSpec
DECIDED = ("lr", "seed", "steps", "epochs", "warmup_steps")
"""Settings of the train section that a comparison sets itself."""


def read_spec(path: str | Path, data: str = "") -> Spec:
    """Read and check a comparison.

    Args:
        path: path of the JSON file.
        data: folder of the prepared set, instead of the file's; empty: the file's.

    Raises:
        UserError: the file is no valid comparison; the message names the file and the key.
    """
    values = read_json(path)
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind not in ("task", "text"):
        raise UserError(f'{path} has the kind {kind!r}; expected an object with "task" or "text"')
    try:
        spec: Spec = from_dict(TaskSpec if kind == "task" else TextSpec, values)
        _check(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if isinstance(spec, TextSpec) and data:
        spec.data = data
    return spec


def _check(spec: Spec) -> None:
    for key in ("lrs", "seeds"):
        values = getattr(spec, key)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key} is {values}; expected one value or more, each once")
    names = [*spec.models, *(spec.tasks if isinstance(spec, TaskSpec) else spec.start)]
    for name in names:
        if not name or not name.replace("_", "").isalnum():
            raise UserError(
                f"the name {name!r} is not accepted; expected letters, digits and underscores"
            )
    if isinstance(spec, TaskSpec):
        _check_tasks(spec)
        return
    if bool(spec.models) == bool(spec.start or spec.start_best):
        raise UserError("models and start are both given or both empty; expected one of them")
    if not spec.tokens and not spec.tune_tokens:
        raise UserError("tokens and tune_tokens are 0; expected tokens to train on")
    _check_set(spec.set)
    of_all = spec.set.get("train", {})
    if of_all.get("warmup_steps") == AUTO:
        of_all = {key: value for key, value in of_all.items() if key != "warmup_steps"}
    _check_own("set.", of_all)
    for name in ["", *spec.models]:
        _check_rates(spec, name)
        _check_own(f"models.{name}.", spec.entry(name).train)
        for key, values in spec.entry(name).fit.items():
            if not values:
                raise UserError(f"models.{name}.fit.{key} is []; expected one value or more")
    known = [*spec.models, *spec.start]
    against = {f"models.{name}.against": entry.against for name, entry in spec.models.items()}
    for key, name in ({"reference": spec.reference} | against).items():
        if name and name not in known and not spec.start_best:
            raise UserError(f"{key} is {name!r}; expected the name of a model")


def _check_rates(spec: TextSpec, model: str) -> None:
    """Check the rates of one model, or the file's own if ``model`` is empty."""
    where, lrs = f"models.{model}." if model else "", spec.lrs_of(model)
    for key, values in (("lrs", lrs), ("full_lrs", spec.entry(model).full_lrs)):
        if len(set(values)) < len(values):
            raise UserError(f"{where}{key} is {values}; expected each rate once")
    if not spec.tune_tokens and len(lrs) > 1:
        raise UserError(
            f"{where}lrs is {lrs} with tune_tokens 0; expected one rate, or tokens to tune it on"
        )


def _check_own(where: str, train: dict[str, Any]) -> None:
    """Refuse settings of the train section that the comparison decides."""
    for key in DECIDED:
        if key in train:
            raise UserError(
                f"{where}train.{key} is the comparison's; expected lrs, seeds, tokens, tune_tokens "
                "and warmup of the file"
            )


def _check_set(given: dict[str, dict[str, Any]]) -> None:
    """Refuse sections that no config has, and what the comparison decides in others."""
    sections = to_dict(RunConfig())
    for name in given:
        if name not in sections:
            raise UserError(
                f"set.{one_line(name)} is no section of a config; expected some of "
                f"{', '.join(sections)}"
            )
    for name, key, instead in (("data", "sets", "data"), ("log", "run_dir", "--out")):
        if key in given.get(name, {}):
            raise UserError(f"set.{name}.{key} is the comparison's; expected {instead} instead")


def _check_tasks(spec: TaskSpec) -> None:
    if not spec.models or not spec.tasks:
        raise UserError("models or tasks is empty; expected at least one of each")
    for name, entry in spec.tasks.items():
        for model in entry.models:
            if model not in spec.models:
                raise UserError(
                    f"tasks.{name}.models has {model!r}; expected some of {', '.join(spec.models)}"
                )
        for model in entry.own_widths:
            if model not in (entry.models or spec.models):
                raise UserError(
                    f"tasks.{name}.own_widths has {model!r}; expected models that learn the task"
                )
        for key in ("lrs", "seed"):
            if key in entry.recall:
                raise UserError(
                    f"tasks.{name}.recall.{key} is the comparison's; expected {key} beside tasks"
                )
