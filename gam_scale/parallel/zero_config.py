"""DeepSpeed's own configuration, derived from ours and merged with what the user adds."""

from typing import Any

from gam_scale.config import ModelConfig, RunConfig
from gam_scale.data.stream import n_micro_batches
from gam_scale.errors import UserError
from gam_scale.model.lm import outline


def engine_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The configuration for ``deepspeed.initialize``.

    Raises:
        UserError: ``parallel.deepspeed`` sets what the rest of the config decides otherwise.
    """
    train, stage = config.train, config.parallel.zero_stage
    options: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": n_micro_batches(train, world_size),
        # Stage 0 in fp32 would neither clip nor report a norm: there both are ours.
        "gradient_clipping": 0.0 if stage == 0 else train.grad_clip,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW
        "zero_force_ds_cpu_optimizer": False,  # its own would compile C++ at start-up
        "steps_per_print": 1 << 60,
        "torch_autocast": {
            "enabled": train.precision == "bf16",
            "dtype": "bfloat16",
            # Modules whose gradients would be rounded to bf16 on their way between ranks.
            "lower_precision_safe_modules": [],
        },
    }
    zero = options["zero_optimization"]
    if stage:
        options["communication_data_type"] = "fp32"
        # Buffers of this many elements; DeepSpeed's own default would allocate 2 GB.
        zero["reduce_bucket_size"] = max(_largest_block(config.model), 1 << 20)
    if stage == 3:
        zero |= _gathering(config.model)
    if config.parallel.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.parallel.offload == "parameters":
        zero["offload_param"] = {"device": "cpu"}
    return _merged(options, config.parallel.deepspeed, "parallel.deepspeed", _TUNABLE)


_TUNABLE = {
    "communication_data_type",
    "lower_precision_safe_modules",
    "reduce_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "steps_per_print",
}
"""Options of ours that change speed and memory only, so that the user's are taken instead."""


def _gathering(model: ModelConfig) -> dict[str, Any]:
    """Hold one block's parameters while the next one's are on their way.

    DeepSpeed's own limits (a billion parameters) would keep models of up to that size whole.
    """
    block = _largest_block(model)
    return {
        # Its own linear adds the bias in place, to a product that selective recomputation keeps.
        "memory_efficient_linear": False,
        "stage3_max_live_parameters": 2 * block,
        "stage3_max_reuse_distance": 0,  # else what backward uses again stays until then
        "stage3_prefetch_bucket_size": block,
        "stage3_param_persistence_threshold": 4 * model.d_model,  # norms and biases stay whole
    }


def _largest_block(model: ModelConfig) -> int:
    return max(sum(p.numel() for p in b.parameters()) for b in outline(model).blocks)


def _merged(
    ours: dict[str, Any], theirs: dict[str, Any], where: str, tunable: set[str]
) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        place = f"{where}.{key}"
        if isinstance(ours.get(key), dict) and isinstance(value, dict):
            merged[key] = _merged(ours[key], value, place, tunable)
        elif key in ours and key not in tunable and ours[key] != value:
            raise UserError(
                f"{place} is {value!r} but the rest of the config makes it {ours[key]!r}; expected "
                "that, or nothing there"
            )
        elif key in _OURS:
            raise UserError(f"{place} is set, but {_OURS[key]}; expected it to be left out")
        else:
            merged[key] = value
    return merged


_OURS = {
    "optimizer": "the optimizer follows from the train section",
    "scheduler": "the learning rate follows from train.schedule",
    "train_batch_size": "batches follow from train.global_batch_size",
    "fp16": "train.precision knows fp32 and bf16",
    "bf16": "train.precision decides what is computed in bf16",
    "amp": "train.precision decides what is computed in bf16",
}
"""DeepSpeed sections that would take over what the loop does itself."""
