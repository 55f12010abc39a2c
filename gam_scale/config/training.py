"""Settings of the train section: what updates parameters, schedules, batches, stages, precision."""

from dataclasses import MISSING, dataclass
from typing import Literal

from gam_scale.model.shape import LONGEST, WIDEST
from gam_scale.strict import FloatOrAuto, IntOrAuto, option, section


@dataclass
class StageConfig:
    """Some of a run's steps, with a length, a batch and a mix of data of their own."""

    steps: int = option(MISSING, "optimizer steps of the stage", above=0)
    seq_len: int = option(
        0,
        "tokens of context per training sequence, a divisor of data.seq_len; 0: data.seq_len",
        at_least=0,
        at_most=LONGEST,
    )
    global_batch_size: int = option(
        0,
        "sequences per optimizer step over all ranks; 0: train.global_batch_size",
        at_least=0,
        at_most=LONGEST,
    )
    micro_batch_size: int = option(
        0,
        "most sequences per rank and forward pass; 0: train.micro_batch_size",
        at_least=0,
        at_most=WIDEST,
    )
    weights: dict[str, float] = option(
        {},
        "shares of training sequences by set, named by its path or the last part of that; a set "
        "that is not named keeps its weight in data.sets; 0: the set is not read in this stage",
        at_least=0,
    )


@dataclass
class AnnealConfig:
    """A decay that was asked for while a run trained, noted by the run itself (run/anneal.py)."""

    from_step: int = option(0, "steps done when it began", at_least=0)
    steps: int = option(
        0,
        "steps of the decay, linear to min_lr_ratio, with which the run ends; 0: none. Written by "
        "a run that pretrain.py --anneal-now, or a file anneal-now in its directory, asked for it",
        at_least=0,
    )
    of_steps: int = option(
        0, "train.steps before, which the rates up to from_step follow", at_least=0
    )


@dataclass
class TrainConfig:
    """Optimisation: what updates parameters, a schedule, batches, precision.

    What is "auto" follows from the model and the run by gam_scale/hyperparameters.py.
    """

    steps: int = option(0, "optimizer steps; give steps or epochs", at_least=0)
    epochs: float = option(0.0, "passes over the first data set; give steps or epochs", at_least=0)
    global_batch_size: IntOrAuto = option(
        32,
        "sequences per optimizer step over all ranks; auto: a power of two, by the run's tokens",
        at_least=1,
        at_most=LONGEST,
    )
    micro_batch_size: int = option(
        8, "most sequences per rank and forward pass", at_least=1, at_most=WIDEST
    )
    stages: list[StageConfig] = option(
        [],
        "stretches of the run that each have steps, seq_len, batch and weights of data of their "
        "own, in order; none: all steps are alike. Their steps make train.steps, the longest has "
        "data.seq_len, which validation, horizons and positions go by. Each set goes on in a "
        "stage where the one before left it. A resumed run may change stages that are to come",
    )
    optimizer: str = option(
        "adamw",
        "what updates parameters; adamw; muon: matrices of hidden layers by momentum that is made "
        "orthogonal, so that lr and weight_decay serve it as they do AdamW, which updates all "
        "others: embeddings, head, norms, biases, convolutions, gates and horizons",
    )
    muon_momentum: float = option(0.95, "Muon's momentum, of Nesterov's kind", at_least=0, below=1)
    lr: FloatOrAuto = option(
        3e-4,
        "peak learning rate; auto: by width, batch and the run's tokens. Every auto here is chosen "
        "when a run begins, by gam_scale/hyperparameters.py, and written into its config.json",
        above=0,
    )
    min_lr_ratio: float = option(0.0, "last learning rate over lr", at_least=0, at_most=1)
    schedule: Literal["cosine", "wsd", "constant"] = option(
        "cosine", "after warm-up: cosine decay, warmup-stable-decay (linear end), or constant"
    )
    warmup_steps: IntOrAuto = option(
        100, "linear warm-up; auto: by parameters, batch and steps", at_least=0
    )
    anneal: AnnealConfig = section(AnnealConfig, "a decay begun on demand")
    decay_ratio: float = option(0.2, "share of steps in which wsd decays", at_least=0, at_most=1)
    beta1: float = option(0.9, "AdamW's first moment", at_least=0, below=1)
    beta2: FloatOrAuto = option(
        0.95, "AdamW's second moment; auto: by batch and the run's tokens", at_least=0, below=1
    )
    eps: float = option(1e-8, "AdamW's epsilon", above=0)
    weight_decay: FloatOrAuto = option(
        0.1,
        "decoupled decay, AdamW's and Muon's; auto: by lr, steps and tokens a parameter",
        at_least=0,
    )
    decay: Literal["matrices", "all"] = option(
        "matrices",
        "which parameters decay; matrices: weights, not those of fusion gates, nor biases, norms "
        "and Mamba's rates; all: these too (the paper's). The rates of mamba2 and of written "
        "memories, their gates' biases and what they start with never decay, the gates' matrices "
        "where the layer's decay_gates says so",
    )
    grad_clip: float = option(1.0, "largest global gradient norm; 0: no clipping", at_least=0)
    z_loss: float = option(
        0.0,
        "times the squared logarithm of the softmax's denominator, minimised beside the loss so "
        "that logits do not drift (arXiv 2204.02311, with 1e-4); no loss that is logged has it",
        at_least=0,
    )
    max_skipped_steps: int = option(
        10,
        "steps in a row without a finite gradient, each of which is skipped, that end the run; on "
        "GPUs they are counted when a line is logged or a checkpoint saved",
        at_least=1,
    )
    spike_ratio: float = option(
        0.0,
        "a step whose loss is more than this many times the median of the last 32 goes back to the "
        "last checkpoint and leaves out the data since; 0: never. On GPUs each step then waits for "
        "the loss of the one before. wandb, online, keeps the values that it has of steps that are "
        "then done anew",
        at_least=0,
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "bf16: matmuls in bfloat16 by autocast, parameters and optimizer stay fp32"
    )
    fp32_matmul: Literal["ieee", "tf32"] = option(
        "ieee",
        "the memories' own products of float32 matrices, on GPUs; ieee: exact float32; tf32: 10 "
        "bits of each factor, float32 sums, several times as fast. Gates, scans' factors and all "
        "other products stay as they are. In a bf16 run kernels of an installed package, where "
        "they are used (docs/gpu.md), take queries, keys and values in bfloat16 whatever this says",
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "torch.compile per block, each whole in one graph; auto: where a C++ (CPU) or Triton (GPU) "
        "toolchain is, and uncompiled, with the reason in the log, where a block does not compile; "
        "on: that is an error",
    )
    recompute: Literal["none", "selective", "full"] = option(
        "selective",
        "what a block computes again in backward instead of keeping it; none: nothing; selective: "
        "all but matmuls, attention, scans and masks; full: all but its input and masks. At the "
        "paper's size a step takes 592 MB with selective, 447 MB and 11% more time with full",
    )
    profile: list[int] = option(
        [],
        "the first and the last of some steps to profile, such as [20, 22]: the run directory's "
        "logs/profile/ gets a chrome trace of each rank (ui.perfetto.dev shows it), and each "
        "rank's log the ten kernels, on CPUs operators, that took longest. A GPU that runs out of "
        "memory leaves a snapshot there anyway, and with this it says which line asked for what",
        at_least=1,
    )
    seed: int = option(0, "seeds weights, dropout and data order", at_least=0)
