"""Every setting of a run, typed, bounded and documented, in the sections that a config file has.

What a file leaves out takes the defaults below, of training.py, or of the model's in
model/config.py. Which settings go together is in rules.py. ``python tools/pretrain.py
--help-config`` prints every setting, its default and what it means.
"""

from dataclasses import dataclass
from typing import Any, Literal

from gam_scale.config.training import TrainConfig
from gam_scale.model.config import ModelConfig
from gam_scale.model.shape import LONGEST, WIDEST
from gam_scale.strict import option, section


@dataclass
class DataSetConfig:
    """One prepared set of shards in the training mix."""

    path: str = option("", "folder or URL that tools/prepare_data.py wrote (s3://, gs://, ...)")
    weight: float = option(1.0, "share of training sequences, relative to the other sets", above=0)


@dataclass
class DataConfig:
    """What the model reads, and how documents are packed into sequences."""

    sets: list[DataSetConfig] = option([], "prepared sets and their weights")
    seq_len: int = option(
        256, "tokens of context per training sequence", at_least=1, at_most=LONGEST
    )
    documents: Literal["reset", "concatenate"] = option(
        "reset",
        "reset: nothing crosses a document boundary (masks, state resets, positions restart); "
        "concatenate: the paper's plain stream of tokens",
    )
    cache_dir: str = option("", "local cache for remote sets; empty: a folder in the run directory")
    shuffle_tokens: int = option(
        1 << 28, "tokens among which sequences are shuffled; whole sets if smaller", at_least=1
    )
    carry_state: bool = option(
        False,
        "each row of a batch goes on in the text where that row of the batch before ended, from "
        "the states that it left, through which no gradient flows; sequences are then read in "
        "order, one stretch of the set per row, instead of shuffled. For memories and mamba2 "
        "only, one set, batches that the ranks divide; without learned positions, context and "
        "spike_ratio",
    )
    chat_template: str = option(
        "",
        "what makes a text of messages, in Jinja as transformers' chat_template; a run on sets of "
        "conversations (prepare_data.py --pairs) has theirs, which its checkpoints and what is "
        "exported of them keep",
    )


@dataclass
class ParallelConfig:
    """Which engine runs the step, what it shards, and on what."""

    engine: Literal["deepspeed", "fsdp", "torch"] = option(
        "deepspeed",
        "deepspeed: ZeRO; fsdp: PyTorch's fully_shard (FSDP2); torch: a plain loop, everything on "
        "every rank, gradients all-reduced",
    )
    zero_stage: Literal[0, 1, 2, 3] = option(
        0,
        "deepspeed: what is sharded over the ranks; 0: nothing, 1: optimizer, 2: and gradients, "
        "3: and parameters",
    )
    shard_ranks: int = option(
        0,
        "fsdp: ranks that share one copy of the model, which is replicated over the others, a "
        "multiple of parallel.context; 0: all",
        at_least=0,
        at_most=WIDEST,
    )
    reshard_after_forward: bool = option(
        True, "fsdp: free a block's gathered parameters until its backward pass gathers them again"
    )
    context: int = option(
        1,
        "ranks that share each sequence, every one holding seq_len / context tokens",
        at_least=1,
        at_most=WIDEST,
    )
    offload: Literal["none", "optimizer", "parameters"] = option(
        "none",
        "what a sharding engine keeps in CPU memory: optimizer (deepspeed stages 1 to 3), or "
        "parameters too (deepspeed stage 3, fsdp)",
    )
    offload_dir: str = option(
        "",
        "deepspeed stage 3: a folder on a local NVMe disk that holds what is offloaded, instead of "
        "CPU memory, for one run at a time; needs libaio and its headers, with which DeepSpeed "
        "compiles its async_io operator at the first use (minutes)",
    )
    deepspeed: dict[str, Any] = option(
        {}, "raw DeepSpeed options, merged into those that the rest of this config makes"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto",
        "mps: an Apple GPU, for engine torch on one rank (docs/laptops.md); auto: an NVIDIA GPU, "
        "else where it can be mps, else the CPU; an error where the job has GPUs that torch lacks",
    )
    preflight: bool = option(
        True,
        "before training, check each rank's GPU and /dev/shm, disk, versions, clock and a "
        "second's worth of the data's hashes, and the links between them, in seconds; a rank that "
        "fails is named with its host",
    )
    timeout_s: float = option(
        1800.0,
        "seconds without progress of any rank (a step, a batch, a block of a file) after which a "
        "job of several ranks ends, naming the rank that the others wait for",
        above=0,
        at_most=1e8,
    )


@dataclass
class CheckpointConfig:
    """What is kept of a run, and how often."""

    every_steps: int = option(200, "steps between checkpoints; the last step is kept too", above=0)
    keep_last: int = option(2, "most recent checkpoints kept", at_least=1)
    keep_best: bool = option(True, "keep the checkpoint of the lowest validation loss as well")
    best: str = option(
        "",
        "by which loss a checkpoint is the best: the name of a set of eval.sets, or of one of "
        "several data.sets; empty: the mean val_loss",
    )
    keep_steps: list[int] = option(
        [], "steps whose checkpoints are saved and kept whatever keep_last says", at_least=1
    )
    background: bool = option(True, "write while training goes on, from a copy in CPU memory")
    init_from: str = option(
        "",
        "a run directory, step-* folder or URL of one whose weights a new run starts from, with "
        "a new optimizer, schedule and data: to continue at a longer context, or on other text",
    )
    branch_of: str = option(
        "",
        "a run directory of the same settings but train.steps: a new run goes on from its newest "
        "checkpoint at a step up to which both learning rates are the same, as if it had trained "
        "those steps itself; see train.schedule wsd and checkpoint.keep_steps",
    )
    continue_from: str = option(
        "",
        "a run directory, step-* folder or URL of one whose weights and optimizer a new run takes "
        "over, with learning rates, batch, data, seed and the like of its own: to anneal, or to "
        "change the mix. Steps and schedule count from 0; data goes on where it stood if sets, "
        "weights, seed and packing are the same and neither run has stages, else begins anew (with "
        "another seed, in another order)",
    )
    mirror: str = option(
        "",
        "URL (s3://, gs://, file://) of a folder of the run's own, to which each checkpoint, and "
        "the metrics and other records, are copied while training goes on; the same command on "
        "another machine, in an empty directory, goes on from there. Keeps what keep_last, "
        "keep_best and keep_steps keep (docs/checkpoints.md)",
    )
    mirror_wait_s: float = option(
        120.0,
        "most seconds to wait for checkpoints on their way to the mirror where a signal stops the "
        "run; ten times that at its end",
        at_least=0,
        at_most=1e6,
    )
    fall_back: bool = option(
        False, "resume from the newest sound checkpoint where newer ones are damaged"
    )
    max_restarts: int = option(
        3,
        "restarts in a row by a scheduler (Slurm, torchrun) that find no newer checkpoint, after "
        "which the run ends with the reason; 0: never",
        at_least=0,
    )


@dataclass
class EvalSetConfig:
    """A text that is validated on by itself, whatever is trained on."""

    path: str = option("", "folder or URL of a prepared set; empty: the sets of data.sets")
    split: str = option("valid", "which split of it is read: valid, test or train")


@dataclass
class EvalConfig:
    """Validation during training."""

    every_steps: int = option(200, "steps between evaluations; 0: only after the last", at_least=0)
    max_tokens: int = option(
        262_144,
        "validation tokens read each time, shared by the sets that have a validation split as "
        "equally as their lengths allow; 0: all of them",
        at_least=0,
    )
    sets: dict[str, EvalSetConfig] = option(
        {},
        "texts by a name of yours that are validated on too, each by itself and up to "
        "eval.max_tokens tokens of it: val_loss/NAME in every line that has a val_loss. Of several "
        "data.sets each has such a curve anyway, of its part of the mean val_loss, by its path's "
        "last part",
    )
    batch_size: int = option(8, "sequences per rank and forward pass", at_least=1, at_most=WIDEST)
    tasks: dict[str, Any] = option(
        {},
        "tasks by a name of yours that the model is asked while it trains: objects with a kind, "
        "such as choice, last_word, recall or needle, and its settings (docs/evaluation.md); "
        "task/NAME/accuracy and the like in a line",
    )
    tasks_every: int = option(
        0, "steps between askings, and after the last; 0: with eval.every_steps", at_least=0
    )
    late_from: int = option(
        0,
        "tokens of context from which a target is late; the last evaluation also gives the loss of "
        "these alone, val_late_loss, by a second pass; 0: does not",
        at_least=0,
    )


@dataclass
class LogConfig:
    """Where a run writes, and to whom it reports."""

    run_dir: str = option("runs/default", "the run directory; the same one resumes")
    every_steps: int = option(10, "steps between lines of metrics.jsonl", at_least=1)
    sample_every: int = option(
        0,
        "steps between texts that the model writes, into samples.jsonl, logs and report; 0: none "
        "before the run's end",
        at_least=0,
    )
    sample_prompt: str = option("", "what these texts continue; empty: a document's start")
    sample_prompts: list[str] = option(
        [], "several of these, a text for each, in place of log.sample_prompt"
    )
    layers_every: int = option(
        0,
        "steps between statistics of every layer, into layers.jsonl: quantiles of horizons, gates, "
        "states, activations and gradients; 0: none",
        at_least=0,
    )
    noise_every: int = option(
        0,
        "steps between measurements of the gradient noise scale (arXiv 1812.06162), from gradients "
        "of micro-batches and of the whole batch, each into a line of the metrics: a batch of many "
        "more targets gains little from them; 0: none. Engines torch and deepspeed, without "
        "parallel.context, two micro-batches a step at least, over all ranks",
        at_least=0,
    )
    tensorboard: bool = option(True, "write TensorBoard events under logs/ where it is installed")
    wandb: Literal["auto", "offline", "off"] = option(
        "auto", "auto: online with WANDB_API_KEY set, else offline; never a prompt"
    )
    wandb_project: str = option("gam-scale", "wandb project")
    wandb_entity: str = option("", "wandb team or user; empty: the account's own")
    wandb_group: str = option(
        "", "what wandb groups runs by, such as the name of a sweep; empty: nothing"
    )
    wandb_tags: list[str] = option([], "tags of the wandb run, of 1 to 64 characters each")
    wandb_name: str = option("", "name of the wandb run; empty: the last part of run_dir")
    wandb_notes: str = option(
        "",
        "a longer description of the wandb run. Its id is made when the run begins, and kept in "
        "the run directory: a resumed run, requeued or on another machine, goes on in it",
    )


@dataclass
class RunConfig:
    """Everything that defines a run."""

    model: ModelConfig = section(ModelConfig, "the model")
    data: DataConfig = section(DataConfig, "the data")
    train: TrainConfig = section(TrainConfig, "optimisation")
    parallel: ParallelConfig = section(ParallelConfig, "engine and device")
    checkpoint: CheckpointConfig = section(CheckpointConfig, "checkpoints")
    eval: EvalConfig = section(EvalConfig, "validation")
    log: LogConfig = section(LogConfig, "run directory and metrics")
