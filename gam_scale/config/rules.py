"""Which settings of a run go together."""

from gam_scale.config.axes import Axes
from gam_scale.config.sections import ParallelConfig, RunConfig
from gam_scale.config_model import ModelConfig
from gam_scale.errors import UserError


def check(config: RunConfig) -> None:
    """Refuse combinations that cannot work; each message names the keys and what would do."""
    model, data, train = config.model, config.data, config.train
    _check_parallel(config.parallel)
    check_model(model)
    if data.seq_len % config.parallel.context:
        raise UserError(
            f"parallel.context is {config.parallel.context}, which does not divide data.seq_len "
            f"{data.seq_len}; expected a divisor"
        )
    if data.seq_len // config.parallel.context < model.gam.kernel_size:
        shared = f", cut over parallel.context {config.parallel.context} ranks,"
        raise UserError(
            f"data.seq_len is {data.seq_len}{shared * (config.parallel.context > 1)} and "
            f"model.gam.kernel_size {model.gam.kernel_size}; expected at least that many tokens on "
            "a rank"
        )
    if model.position == "learned" and data.seq_len > model.max_seq_len:
        raise UserError(
            f"data.seq_len is {data.seq_len} but model.max_seq_len gives {model.max_seq_len} "
            "positions; expected data.seq_len at most that, or model.position none"
        )
    if train.profile and (len(train.profile) != 2 or train.profile[0] > train.profile[1]):
        raise UserError(
            f"train.profile is {train.profile}; expected two steps, the first and the last, such "
            "as [20, 22], or none"
        )
    if data.carry_state:
        _check_carry_state(config)
    names = ("branch_of", "init_from", "continue_from")
    starts = {name: getattr(config.checkpoint, name) for name in names}
    given = [f"checkpoint.{name} is {path}" for name, path in starts.items() if path]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}; expected at most one of them")
    if not data.sets:
        raise UserError(
            'data.sets is empty; expected at least one {"path": FOLDER} made by '
            "tools/prepare_data.py"
        )
    for i, entry in enumerate(data.sets):
        if not entry.path:
            raise UserError(f"data.sets[{i}].path is empty; expected a folder or URL of shards")
    if (train.steps > 0) == (train.epochs > 0):
        raise UserError(
            f"train.steps is {train.steps} and train.epochs is {train.epochs:g}; expected exactly "
            "one of them above 0"
        )
    if train.steps and train.warmup_steps > train.steps:
        raise UserError(
            f"train.warmup_steps is {train.warmup_steps}; expected at most train.steps "
            f"{train.steps}"
        )


def check_ranks(config: RunConfig, world_size: int) -> None:
    """Refuse what cannot be divided over ``world_size`` ranks.

    Raises:
        UserError: see also :meth:`Axes.of`.
    """
    readers, rows = Axes.of(config.parallel, world_size).readers, config.train.global_batch_size
    if config.data.carry_state and rows % readers:
        raise UserError(
            f"train.global_batch_size is {rows}, which the {readers} ranks do not divide; expected "
            "a multiple of them with data.carry_state"
        )


def _check_carry_state(config: RunConfig) -> None:
    kinds = set(config.model.layer_kinds()) & {"attention", "mamba"}
    refused = {
        f"{' and '.join(sorted(kinds))} layers": (bool(kinds), "gam blocks only"),
        "model.position learned": (config.model.position == "learned", "none or rotary"),
        f"parallel.context {config.parallel.context}": (config.parallel.context > 1, "1"),
        f"{len(config.data.sets)} data.sets": (len(config.data.sets) > 1, "one set"),
        "train.spike_ratio": (config.train.spike_ratio > 0, "0, since it leaves out text"),
    }
    for what, (is_there, expected) in refused.items():
        if is_there:
            raise UserError(
                f"data.carry_state does not go with {what}; expected {expected}, or carry_state "
                "false"
            )


def check_model(model: ModelConfig) -> None:
    """Refuse a model that cannot be built, as :func:`check` does for the whole run."""
    if model.layers and model.n_layers % len(model.layers):
        raise UserError(
            f"model.n_layers is {model.n_layers}, which is no multiple of the {len(model.layers)} "
            f"kinds in model.layers; expected a multiple of {len(model.layers)}, since the pattern "
            "is repeated whole"
        )
    _check_heads(model)
    if 0 < model.memory.max_horizon < model.memory.min_horizon:
        raise UserError(
            f"model.memory.min_horizon is {model.memory.min_horizon:g}, above max_horizon "
            f"{model.memory.max_horizon:g}; expected at most that, or max_horizon 0"
        )


def _check_heads(model: ModelConfig) -> None:
    kinds = set(model.layer_kinds())
    heads = {"model.attention.n_heads": model.attention.n_heads} if "attention" in kinds else {}
    if kinds & {"slot", "delta", "phase"}:
        heads["model.memory.n_heads"] = model.memory.n_heads
    for key, n_heads in heads.items():
        if model.d_model % n_heads:
            raise UserError(
                f"{key} is {n_heads}, which does not divide model.d_model {model.d_model}; "
                "expected a divisor"
            )
    pairs = "phase" in kinds or (model.position == "rotary" and heads)
    for key, n_heads in heads.items():
        if pairs and model.d_model // n_heads % 2:
            raise UserError(
                f"{key} is {n_heads}, which gives heads of {model.d_model // n_heads} channels; "
                "expected an even number of them for phase memories and rotary positions"
            )


def _check_parallel(parallel: ParallelConfig) -> None:
    engine, offload, stage = parallel.engine, parallel.offload, parallel.zero_stage
    if stage and engine != "deepspeed":
        raise UserError(
            f"parallel.zero_stage is {stage} but parallel.engine is {engine}; expected engine "
            "deepspeed, or stage 0"
        )
    if parallel.deepspeed and engine != "deepspeed":
        raise UserError(
            f"parallel.deepspeed has options but parallel.engine is {engine}; expected engine "
            "deepspeed, or none"
        )
    if parallel.shard_ranks and engine != "fsdp":
        raise UserError(
            f"parallel.shard_ranks is {parallel.shard_ranks} but parallel.engine is {engine}; "
            "expected engine fsdp, or 0"
        )
    possible = {
        "none": True,
        "optimizer": engine == "deepspeed" and stage > 0,
        "parameters": engine == "fsdp" or stage == 3,
    }
    if not possible[offload]:
        wanted = {
            "optimizer": "engine deepspeed with zero_stage 1, 2 or 3",
            "parameters": "engine fsdp, or deepspeed with zero_stage 3",
        }
        raise UserError(
            f"parallel.offload is {offload} with engine {engine} and zero_stage {stage}; expected "
            f"{wanted[offload]}, or none"
        )
    if parallel.offload_dir and (stage != 3 or offload == "none"):
        raise UserError(
            f"parallel.offload_dir is {parallel.offload_dir} with engine {engine}, zero_stage "
            f"{stage} and offload {offload}; expected engine deepspeed with zero_stage 3 and "
            "something to offload, or no folder"
        )
