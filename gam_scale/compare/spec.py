"""A comparison: named models, what they learn, and how each is tuned, from one strict JSON file.

Two kinds. ``task`` trains small models on synthetic tasks (:mod:`gam_scale.evaluate.tasks`), each
at every learning rate. ``text`` trains language models: at every learning rate on few tokens, then
at the best one on many, then the best models from further seeds; then what was trained is measured.
The best rate is never that at an end of those tried, as far as ``widen`` allows more.
A text comparison may instead go on from the models of another one (``start``), at a longer context.
configs/compare/ has examples; docs/comparisons.md says what they ask.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gam_scale.errors import UserError
from gam_scale.strict import AUTO, from_dict, option, read_json, section


@dataclass
class TaskEntry:
    """A synthetic task, and which models learn it."""

    recall: dict[str, Any] = option({}, "its settings, as --set recall.KEY of tools/evaluate.py")
    models: list[str] = option([], "names of the models that learn it; empty: all")
    widths: list[int] = option([], "model.d_model, a model of each; empty: as the model says")
    own_widths: dict[str, list[int]] = option({}, "of some models, by name, instead of widths")


@dataclass
class TaskSpec:
    """Models that learn synthetic tasks."""

    kind: Literal["task"] = option("task", "task")
    tasks: dict[str, TaskEntry] = option({}, "by a name of your choice")
    model: dict[str, Any] = option({}, "the model section that all share")
    models: dict[str, dict[str, Any]] = option({}, "by name, what of the model section is its own")
    lrs: list[float] = option([1e-3, 3e-3, 1e-2], "peak learning rates", above=0)
    widen: int = option(
        1, "further rates, one by one, while the best is at an end of those tried", at_least=0
    )
    seeds: list[int] = option([0], "the first tunes; all train at the best rate", at_least=0)


@dataclass
class ModelEntry:
    """A language model, and how it is brought to the common size."""

    model: dict[str, Any] = option({}, "what of the model section is its own")
    train: dict[str, Any] = option({}, "what of the train section is its own: its optimizer, say")
    lrs: list[float] = option([], "its own peak learning rates; empty: the file's", above=0)
    full_lrs: list[float] = option(
        [],
        "rates of full runs beside the best of those that were tuned, which fewer steps may have "
        "made too high; the model's figures are those of its best full run",
        above=0,
    )
    against: str = option(
        "",
        "the model whose last loss it is to reach, of which the page gives tokens and seconds; "
        "empty: the reference, if there is one",
    )
    fit: dict[str, list[float]] = option(
        {},
        'settings of its layers by "KIND.SETTING" and the values that each may take; those whose '
        "state comes nearest to size.state are taken",
    )
    state: Literal["equal", "own"] = option(
        "equal", "equal: refused unless its state is size.state; own: that of attention, or none"
    )


@dataclass
class SizeSpec:
    """The size that all models are brought to."""

    parameters: int = option(
        0,
        "trainable numbers beside embeddings and head, reached by the width of the feed-forward "
        "networks; 0: as the models say",
        at_least=0,
    )
    state: int = option(
        0, "numbers that the memories of all layers hold; 0: as the models say", at_least=0
    )
    tolerance: float = option(0.01, "relative difference that counts as equal", at_least=0)


@dataclass
class MeasureSpec:
    """What is measured of every model that was trained in full."""

    positions: list[int] = option([], "lengths at which loss is measured by position", at_least=2)
    hidden: list[int] = option([], "lengths at which needles and pairs are hidden", at_least=2)
    pairs: list[int] = option([4], "sentences of key-value retrieval", at_least=2)
    depths: list[float] = option(
        [0, 0.25, 0.5, 0.75, 1], "of needles, 0 the start", at_least=0, at_most=1
    )
    trials: int = option(20, "texts of each length, depth and number of pairs", at_least=2)
    max_tokens: int = option(262_144, "validation tokens of loss by position; 0: all", at_least=0)
    context: int = option(
        0, "tokens of the windows of the effective context; 0: not measured", at_least=0
    )


@dataclass
class TextSpec:
    """Language models."""

    kind: Literal["text"] = option("text", "text")
    data: str = option("data/books", "folder that tools/prepare_data.py wrote")
    set: dict[str, dict[str, Any]] = option({}, "settings of every run, by section")
    models: dict[str, ModelEntry] = option({}, "by name")
    start: list[str] = option(
        [],
        "instead of models: names of another comparison (--start), whose trained models, first "
        "seed, these go on from",
    )
    start_best: int = option(
        0,
        "beside start, so many more of them: those without attention whose validation loss was "
        "lowest",
        at_least=0,
    )
    size: SizeSpec = section(SizeSpec, "the common size")
    tokens: float = option(1e6, "of a full run; 0: none, rates alone are compared", at_least=0)
    tune_tokens: float = option(
        0, "of a run that tunes; 0: none, with one learning rate", at_least=0
    )
    lrs: list[float] = option([1e-3, 2e-3, 4e-3], "peak learning rates", above=0)
    times_auto: bool = option(
        False, "lrs are multiples of what train.lr auto chooses for each model and budget"
    )
    widen: int = option(
        1,
        "further rates, one by one, while the best is at an end of those that were tuned",
        at_least=0,
    )
    warmup: float = option(
        0.05,
        "share of the steps that warm up, unless train.warmup_steps of set is auto",
        at_least=0,
        below=1,
    )
    seeds: list[int] = option([0], "the first tunes and trains all models in full", at_least=0)
    repeat: int = option(0, "models, the best, that further seeds train; 0: all", at_least=0)
    reference: str = option("", "the model that others are compared with; empty: the best")
    measure: MeasureSpec = section(MeasureSpec, "what is measured at the end")

    def entry(self, name: str) -> ModelEntry:
        """Of a model, which may be another comparison's."""
        return self.models.get(name, ModelEntry())

    def lrs_of(self, name: str) -> list[float]:
        """Those at which a model is tuned first."""
        return self.entry(name).lrs or self.lrs


Spec = TaskSpec | TextSpec
DECIDED = ("lr", "seed", "steps", "epochs", "warmup_steps")
"""Settings of the train section that a comparison sets itself."""


def read_spec(path: str | Path, data: str = "") -> Spec:
    """Read and check a comparison.

    Args:
        path: of the JSON file.
        data: the prepared set, instead of the file's.

    Raises:
        UserError: naming the file and the key.
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
    """Of all models, named "", or of one."""
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
