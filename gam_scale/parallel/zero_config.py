"""DeepSpeed's own configuration, derived from ours and merged with what the user adds."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from gam_scale.config import ModelConfig, RunConfig
from gam_scale.config.stages import stages_of
from gam_scale.data.stream import n_micro_batches
from gam_scale.errors import UserError
from gam_scale.hardware.compiler import can_compile
from gam_scale.model.lm import outline
from gam_scale.model.policy import keeps_fp32


def engine_config(config: RunConfig, readers: int) -> dict[str, Any]:
    """Return the options for ``deepspeed.initialize``, for batches cut into ``readers`` shares.

    Raises:
        UserError: ``parallel.deepspeed`` contradicts the rest of the config, or names a module that
            does not exist.
    """
    train, stage, stages = config.train, config.parallel.zero_stage, stages_of(config)
    options: dict[str, Any] = {
        # The largest of all stages of the run; the strategy itself says where a step ends.
        "train_micro_batch_size_per_gpu": max(one.micro_batch_size for one in stages),
        "gradient_accumulation_steps": max(n_micro_batches(one, readers) for one in stages),
        # DeepSpeed's stage 0 in fp32 would neither clip nor report a norm: we do both there.
        "gradient_clipping": 0.0 if stage == 0 else train.grad_clip,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,  # which would compile C++ at start-up
        "steps_per_print": 1 << 60,
        # This would wait for the device at both ends of every micro-batch; the loop has its own.
        "timers": {"throughput": {"enabled": False}},
        "torch_autocast": {
            "enabled": train.precision == "bf16",
            "dtype": "bfloat16",
            # Modules whose gradients would be rounded to bf16 on their way between ranks.
            "lower_precision_safe_modules": [],
        },
    }
    zero = options["zero_optimization"]
    if stage < 3:
        options["gradient_allreduce_op"] = "sum"  # losses are divided by the global token count
    if stage:
        options["communication_data_type"] = "fp32"
        # Buffers of this many elements; DeepSpeed's own default would allocate 2 GB.
        zero["reduce_bucket_size"] = max(_largest_block(config.model), 1 << 20)
    if stage in (1, 2):
        # Each part of a bucket goes to the rank that owns it; else all parts go to all ranks.
        zero["use_multi_rank_bucket_allreduce"] = False
    if stage == 3:
        zero["contiguous_gradients"] = False  # one copy less: a reduce-scatter joins them anyway
        zero |= _gathering(config.model)
    zero |= _offloading(config)
    options = _merged(options, config.parallel.deepspeed, "parallel.deepspeed", _TUNABLE)
    low_precision_modules(options)  # DeepSpeed would object later, and less clearly
    return options


def low_precision_modules(options: dict[str, Any]) -> list[type]:
    """Return the modules whose gradients, and in stage 3 parameters, DeepSpeed sends in bf16.

    Raises:
        UserError: a module named in ``options``, which :func:`engine_config` made, does not exist
            or holds parameters that must keep fp32.
    """
    autocast = options["torch_autocast"]
    names = autocast["lower_precision_safe_modules"]
    where = "parallel.deepspeed.torch_autocast.lower_precision_safe_modules"
    expected = 'expected a list of classes, such as ["gam_scale.model.linear.Linear"]'
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} is {names!r}; {expected}")
    modules = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            kind = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError):
            raise UserError(f"{where} has {name!r}, which is not there; {expected}") from None
        if kept := keeps_fp32(kind):
            raise UserError(
                f"{where} has {name!r}, whose {', '.join(kept)} must keep fp32; {expected}"
            )
        modules.append(kind)
    return modules if autocast["enabled"] else []


def check_offload_dir(folder: str) -> None:
    """Check that state can be offloaded to files here; call it once DeepSpeed is imported.

    Raises:
        UserError: the folder cannot be made, or DeepSpeed's async_io operator cannot be compiled.
    """
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder import AsyncIOBuilder
    from torch.utils.cpp_extension import CUDA_HOME

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"parallel.offload_dir is {folder}, which cannot be made ({error.strerror}); expected "
            "a folder that can be written, or none"
        ) from None
    if installed_ops.get("async_io"):
        return
    possible, missing = can_compile("cpu")
    if possible and not AsyncIOBuilder().is_compatible():
        possible, missing = False, "libaio with its headers is missing (Debian: libaio-dev)"
    if possible and torch.cuda.is_available() and CUDA_HOME is None:
        possible, missing = False, "the CUDA toolkit is missing (CUDA_HOME, or nvcc in PATH)"
    if not possible:
        raise UserError(
            "parallel.offload_dir is set but DeepSpeed's async_io operator cannot be compiled "
            f"here: {missing}; expected that, or no folder: CPU memory is used then"
        )


_TUNABLE = {
    "communication_data_type",
    "contiguous_gradients",
    "lower_precision_safe_modules",
    "reduce_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size",
    "steps_per_print",
    "use_multi_rank_bucket_allreduce",
}
"""Options of ours that affect only speed and memory, so that the user's values replace them."""


def _gathering(model: ModelConfig) -> dict[str, Any]:
    """Return limits that hold one block's parameters while the next one's are on their way.

    DeepSpeed's own limits (a billion parameters) would keep models of up to that size gathered.
    """
    block = _largest_block(model)
    return {
        # DeepSpeed's linear adds the bias in place, to a product that selective recompute keeps.
        "memory_efficient_linear": False,
        "stage3_max_live_parameters": 2 * block,
        "stage3_max_reuse_distance": 0,  # else parameters stay until backward needs them
        "stage3_prefetch_bucket_size": block,
        "stage3_param_persistence_threshold": 4 * model.d_model,  # norms and biases stay whole
    }


def _offloading(config: RunConfig) -> dict[str, Any]:
    """Return options that offload optimizer state, or parameters too, to CPU memory or files."""
    offload, folder = config.parallel.offload, config.parallel.offload_dir
    if offload == "none":
        return {}
    place = {"device": "nvme", "nvme_path": folder} if folder else {"device": "cpu"}
    options: dict[str, Any] = {"offload_optimizer": place}
    if folder:
        # Parameters in memory at a time; DeepSpeed's default, a billion, would mean all of them.
        options["sub_group_size"] = _largest_block(config.model)
    if offload == "parameters":
        options["offload_param"] = place | (_parameter_buffers(config.model) if folder else {})
    return options


def _parameter_buffers(model: ModelConfig) -> dict[str, int]:
    """Return buffers for two blocks and the embeddings: one of equal size for each parameter."""
    sizes = [p.numel() for p in outline(model).parameters()]
    block = sum(1 for _ in outline(model).blocks[0].parameters())
    return {
        "buffer_count": 2 * block + 2,
        "buffer_size": max(sizes),
        "max_in_cpu": 0,
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
