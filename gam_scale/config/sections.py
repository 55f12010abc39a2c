"""Every setting of a run, typed, bounded and documented, by the sections of a config file.

Settings that a file leaves out take the defaults given here, in training.py and, for the model, in
model/config.py. rules.py says which settings go together. ``python tools/pretrain.py
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

    path: str = option(
        "", "folder or URL (s3://, gs://, ...) of a set that tools/prepare_data.py wrote"
    )
    weight: float = option(1.0, "share of training sequences, relative to the other sets", above=0)


@dataclass
class DataConfig:
    """What the model reads, and how documents are packed into sequences."""

    sets: list[DataSetConfig] = option([], "prepared sets to train on, and their weights")
    seq_len: int = option(
        256, "tokens of context per training sequence", at_least=1, at_most=LONGEST
    )
    documents: Literal["reset", "concatenate"] = option(
        "reset",
        "reset: nothing crosses a document boundary (attention is masked, states are reset, "
        "positions restart); concatenate: one plain stream of tokens, as in the paper",
    )
    cache_dir: str = option(
        "",
        "folder for local copies of remote sets; empty: one in the folder GAM_SCRATCH, which jobs "
        "on Slurm have, or else in the run directory",
    )
    cache_limit_gb: float = option(
        0.0,
        "GB of these copies that a node keeps; the shards that were not opened for the longest "
        "time are deleted; 0: no limit",
        at_least=0,
    )
    shuffle_tokens: int = option(
        1 << 28,
        "tokens of a set within which sequences are shuffled; a smaller set is shuffled as a whole",
        at_least=1,
    )
    carry_state: bool = option(
        False,
        "each row of a batch continues the text, and the states, of the same row of the batch "
        "before; no gradient flows through these states. Sequences are read in order, one stretch "
        "of the set per row, instead of shuffled. Needs memories or mamba2 in all layers, one set "
        "and a batch that the ranks divide; not with learned positions, parallel.context, "
        "train.stages or train.spike_ratio",
    )
    chat_template: str = option(
        "",
        "Jinja template that turns messages into text, as transformers' chat_template; a run on "
        "conversations (prepare_data.py --pairs) takes that of its sets; checkpoints and exports "
        "keep it",
    )

    @property
    def cache_limit(self) -> float:
        """``cache_limit_gb`` in bytes."""
        return 1e9 * self.cache_limit_gb


@dataclass
class ParallelConfig:
    """Which engine runs a step, what it shards, and on which device."""

    engine: Literal["deepspeed", "fsdp", "torch"] = option(
        "deepspeed",
        "deepspeed: ZeRO; fsdp: PyTorch's fully_shard (FSDP2); torch: a plain loop with a full "
        "copy on every rank, gradients all-reduced",
    )
    zero_stage: Literal[0, 1, 2, 3] = option(
        0,
        "deepspeed: what is sharded over the ranks; 0: nothing; 1: optimizer states; 2: gradients "
        "too; 3: parameters too",
    )
    shard_ranks: int = option(
        0,
        "fsdp: number of ranks that share one copy of the model, a multiple of parallel.context; "
        "every further group of so many ranks holds a replica; 0: all ranks",
        at_least=0,
        at_most=WIDEST,
    )
    reshard_after_forward: bool = option(
        True,
        "fsdp: free a block's gathered parameters after its forward pass and gather them again for "
        "its backward pass",
    )
    context: int = option(
        1,
        "ranks that share each sequence, each holding seq_len / context of its tokens",
        at_least=1,
        at_most=WIDEST,
    )
    offload: Literal["none", "optimizer", "parameters"] = option(
        "none",
        "what is kept in CPU memory; optimizer: its states (deepspeed stages 1 to 3); parameters: "
        "these and the parameters (deepspeed stage 3, fsdp)",
    )
    offload_dir: str = option(
        "",
        "deepspeed stage 3: folder on a local NVMe disk for what is offloaded, one run at a time; "
        "needs libaio and its headers, with which DeepSpeed compiles its async_io operator at "
        "first use (minutes); empty: CPU memory",
    )
    deepspeed: dict[str, Any] = option(
        {}, "raw DeepSpeed options, merged into those derived from the rest of this config"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = option(
        "auto",
        "mps: an Apple GPU, with engine torch on one rank (docs/laptops.md); auto: an NVIDIA GPU, "
        "else mps where that is possible, else the CPU; an error if the job was given GPUs that "
        "torch does not see",
    )
    preflight: bool = option(
        True,
        "before training, check in a few seconds each rank's GPU, /dev/shm, disk, versions, clock "
        "and some of the data's hashes (for one second), and the links between ranks; a rank that "
        "fails is named with its host",
    )
    timeout_s: float = option(
        1800.0,
        "seconds without progress of any rank (a step, a batch, a block of a file) after which a "
        "job of several ranks ends and names the rank that the others wait for",
        above=0,
        at_most=1e8,
    )


@dataclass
class CheckpointConfig:
    """When checkpoints are saved, which are kept, and where a run starts from."""

    every_steps: int = option(200, "steps between checkpoints; the last step is saved too", above=0)
    keep_last: int = option(2, "number of most recent checkpoints to keep", at_least=1)
    keep_best: bool = option(True, "also keep the checkpoint with the lowest validation loss")
    best: str = option(
        "",
        "validation loss that decides which checkpoint is best: a name in eval.sets, or of one of "
        "several data.sets; empty: the mean, val_loss",
    )
    keep_steps: list[int] = option(
        [], "steps at which a checkpoint is saved, and kept whatever keep_last says", at_least=1
    )
    background: bool = option(
        True, "write checkpoints while training goes on, from a copy in CPU memory"
    )
    init_from: str = option(
        "",
        "run directory, step-* folder or URL of either, whose weights a new run starts from, with "
        "a new optimizer, schedule and data: to continue at a longer context, or on other text",
    )
    branch_of: str = option(
        "",
        "directory of a run with the same settings except train.steps. A new run continues from "
        "that run's newest checkpoint up to which both have the same learning rates, as if it had "
        "trained those steps itself; see train.schedule wsd and checkpoint.keep_steps",
    )
    continue_from: str = option(
        "",
        "run directory, step-* folder or URL of either, whose weights and optimizer a new run "
        "takes over, with its own learning rates, batch, data, seed and so on: to anneal, or to "
        "change the mix. Steps and schedule count from 0. Data continues where that run stopped if "
        "sets, weights, seed and packing are the same and neither run has stages; else it begins "
        "anew (with another seed, in another order)",
    )
    mirror: str = option(
        "",
        "URL (s3://, gs://, file://) of a folder for this run alone, to which every checkpoint, "
        "the metrics and other records are copied while training goes on. The same command on "
        "another machine, in an empty run directory, continues from there. The mirror keeps what "
        "keep_last, keep_best and keep_steps keep (docs/checkpoints.md)",
    )
    mirror_wait_s: float = option(
        120.0,
        "most seconds to wait for uploads to the mirror when a signal stops the run; at the run's "
        "end, ten times as long",
        at_least=0,
        at_most=1e6,
    )
    fall_back: bool = option(
        False,
        "if the newest checkpoint is damaged, resume from the newest sound one; false: end with an "
        "error",
    )
    max_restarts: int = option(
        3,
        "most restarts in a row by a scheduler (Slurm, torchrun) without a newer checkpoint, after "
        "which the run ends and says why; 0: no limit",
        at_least=0,
    )


@dataclass
class EvalSetConfig:
    """A text that is validated on by itself, whatever the training data is."""

    path: str = option("", "folder or URL of a prepared set; empty: the sets of data.sets")
    split: str = option("valid", "split to read: valid, test or train")


@dataclass
class EvalConfig:
    """Validation during training."""

    every_steps: int = option(
        200,
        "steps between evaluations, with one more after the last step; 0: only that one",
        at_least=0,
    )
    max_tokens: int = option(
        262_144,
        "validation tokens read at each evaluation, divided among the sets with a validation split "
        "as equally as their lengths allow; 0: all",
        at_least=0,
    )
    sets: dict[str, EvalSetConfig] = option(
        {},
        "further texts to validate on, by names of your choice: each is read by itself, up to "
        "eval.max_tokens tokens, and logged as val_loss/NAME beside val_loss. Several data.sets "
        "have such curves anyway, each for its part of val_loss, named by the last part of its "
        "path",
    )
    batch_size: int = option(
        8, "sequences per rank and forward pass in evaluation", at_least=1, at_most=WIDEST
    )
    tasks: dict[str, Any] = option(
        {},
        "tasks to measure during training, by names of your choice: objects with a kind, such as "
        "choice, last_word, recall or needle, and its settings (docs/evaluation.md); logged as "
        "task/NAME/accuracy and the like",
    )
    tasks_every: int = option(
        0,
        "steps between measurements of the tasks, with one more after the last step; 0: as "
        "eval.every_steps",
        at_least=0,
    )
    late_from: int = option(
        0,
        "the last evaluation also measures val_late_loss, in a second pass: the loss of the "
        "targets with at least so many tokens of context; 0: not measured",
        at_least=0,
    )


@dataclass
class LogConfig:
    """Where a run writes its files, what it logs, and where it reports."""

    run_dir: str = option("runs/default", "run directory; a start in the same one resumes the run")
    every_steps: int = option(10, "steps between lines of metrics.jsonl", at_least=1)
    sample_every: int = option(
        0,
        "steps between sample texts that the model writes, for samples.jsonl, logs and report; 0: "
        "none. At the run's end the model in any case writes a text that it begins itself",
        at_least=0,
    )
    sample_prompt: str = option(
        "",
        "prompt that the texts of log.sample_every continue; empty: the start of a document. The "
        "text at the run's end has no prompt",
    )
    sample_prompts: list[str] = option(
        [], "several prompts, with a sample text for each, instead of log.sample_prompt"
    )
    layers_every: int = option(
        0,
        "steps between statistics of every layer in layers.jsonl: quantiles of horizons, gates, "
        "states, activations and gradients; 0: none",
        at_least=0,
    )
    noise_every: int = option(
        0,
        "steps between measurements of the gradient noise scale (arXiv 1812.06162), each in a line "
        "of the metrics; a batch of many more targets than this scale gains little from them; 0: "
        "none. It compares the gradients of micro-batches and of the whole batch, so it needs "
        "engine torch or deepspeed, no parallel.context, and at least two micro-batches a step "
        "over all ranks",
        at_least=0,
    )
    tensorboard: bool = option(
        True, "write TensorBoard events to logs/ if TensorBoard is installed"
    )
    wandb: Literal["auto", "offline", "off"] = option(
        "auto",
        "auto: online if wandb has a key (WANDB_API_KEY, or from `wandb login`) and WANDB_MODE "
        "does not say otherwise, else offline, never with a prompt; offline: to logs/ alone; off: "
        "no wandb",
    )
    wandb_project: str = option("gam-scale", "wandb project")
    wandb_entity: str = option("", "wandb team or user; empty: the account's own")
    wandb_group: str = option(
        "", "wandb group of the run, such as the name of a sweep; empty: none"
    )
    wandb_tags: list[str] = option([], "tags of the wandb run, of 1 to 64 characters each")
    wandb_name: str = option("", "name of the wandb run; empty: the last part of run_dir")
    wandb_notes: str = option(
        "",
        "longer description of the wandb run. The wandb run's id is made when the run begins and "
        "kept in the run directory, so a run that is resumed, requeued or moved to another machine "
        "continues the same wandb run",
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
