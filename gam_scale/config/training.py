"""Settings of the train section: optimizer, schedule, batches, stages and precision."""

from dataclasses import MISSING, dataclass
from typing import Literal

from gam_scale.model.shape import LONGEST, WIDEST
from gam_scale.strict import FloatOrAuto, IntOrAuto, option, section


@dataclass
class StageConfig:
    """A stage: some of a run's steps, with their own sequence length, batch and mix of data."""

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
        "weights of the sets in this stage, each by its path or the last part of it; a set that is "
        "not named keeps its weight in data.sets; 0: the set is not read in this stage",
        at_least=0,
    )


@dataclass
class AnnealConfig:
    """A decay asked for while a run trains, which the run notes itself (run/anneal.py)."""

    from_step: int = option(0, "steps done when the decay began", at_least=0)
    steps: int = option(
        0,
        "steps of a linear decay to min_lr_ratio that ends the run; 0: none. The run writes this "
        "itself when pretrain.py --anneal-now, or a file anneal-now in its directory, asks for a "
        "decay",
        at_least=0,
    )
    of_steps: int = option(
        0,
        "train.steps before the decay was asked for, by which the schedule runs up to from_step",
        at_least=0,
    )


@dataclass
class TrainConfig:
    """Optimisation: optimizer, schedule, batches and precision.

    gam_scale/hyperparameters.py chooses settings that are "auto" from the model and the run.
    """

    steps: int = option(0, "optimizer steps of the run; give either steps or epochs", at_least=0)
    epochs: float = option(
        0.0, "passes over the first data set; give either steps or epochs", at_least=0
    )
    global_batch_size: IntOrAuto = option(
        32,
        "sequences per optimizer step over all ranks; auto: a power of two, chosen from the run's "
        "tokens",
        at_least=1,
        at_most=LONGEST,
    )
    micro_batch_size: int = option(
        8,
        "most sequences per rank and forward pass; the rest of a batch is accumulated",
        at_least=1,
        at_most=WIDEST,
    )
    stages: list[StageConfig] = option(
        [],
        "stages of the run, in order, each with its own steps, seq_len, batch and weights of data; "
        "empty: all steps are alike. The stages' steps add up to train.steps; the longest seq_len "
        "is data.seq_len, which validation, horizons and positions use. Each set continues where "
        "the stage before left it. A resumed run may change stages that are still to come",
    )
    optimizer: str = option(
        "adamw",
        "adamw, or muon, which updates the matrices of hidden layers by orthogonalised momentum, "
        "scaled so that lr and weight_decay mean the same as for AdamW; AdamW updates all else: "
        "embeddings, head, norms, biases, convolutions, gates and horizons",
    )
    muon_momentum: float = option(0.95, "Nesterov momentum of Muon", at_least=0, below=1)
    lr: FloatOrAuto = option(
        3e-4,
        "peak learning rate; auto: chosen from width, batch and the run's tokens. Every auto of "
        "this section is chosen when the run begins, by gam_scale/hyperparameters.py, and written "
        "to its config.json",
        above=0,
    )
    min_lr_ratio: float = option(0.0, "final learning rate as a share of lr", at_least=0, at_most=1)
    schedule: Literal["cosine", "wsd", "constant"] = option(
        "cosine",
        "learning rate after warm-up; cosine: cosine decay; wsd: warmup-stable-decay, constant "
        "with a linear decay at the end; constant: no decay",
    )
    warmup_steps: IntOrAuto = option(
        100, "steps of linear warm-up; auto: chosen from parameters, batch and steps", at_least=0
    )
    anneal: AnnealConfig = section(AnnealConfig, "a decay begun on demand")
    decay_ratio: float = option(
        0.2, "share of the steps, at the end, in which wsd decays", at_least=0, at_most=1
    )
    beta1: float = option(0.9, "decay rate of AdamW's first moment", at_least=0, below=1)
    beta2: FloatOrAuto = option(
        0.95,
        "decay rate of AdamW's second moment; auto: chosen from batch and the run's tokens",
        at_least=0,
        below=1,
    )
    eps: float = option(1e-8, "AdamW's epsilon", above=0)
    weight_decay: FloatOrAuto = option(
        0.1,
        "decoupled weight decay of AdamW and Muon; auto: chosen from lr, steps and tokens per "
        "parameter",
        at_least=0,
    )
    decay: Literal["matrices", "all"] = option(
        "matrices",
        "which parameters decay; matrices: weights, but no fusion gates, biases, norms or rates of "
        "Mamba; all: these too, as in the paper. The rates of mamba2 and of written memories, the "
        "biases of memories' gates and learned initial states never decay; the matrices of "
        "memories' gates do only if the layer's decay_gates says so",
    )
    grad_clip: float = option(1.0, "largest global gradient norm; 0: no clipping", at_least=0)
    z_loss: float = option(
        0.0,
        "weight of a term that keeps logits from drifting, the squared logarithm of the softmax's "
        "denominator (arXiv 2204.02311, with 1e-4); it is minimised with the loss but in no logged "
        "loss; 0: none",
        at_least=0,
    )
    max_skipped_steps: int = option(
        10,
        "steps without a finite gradient are skipped, and so many of them in a row end the run; on "
        "GPUs they are counted when a line is logged or a checkpoint saved",
        at_least=1,
    )
    spike_ratio: float = option(
        0.0,
        "when a step's loss is more than this many times the median of the last 32, the run goes "
        "back to the last checkpoint and leaves out the data read since (docs/engines.md); 0: "
        "never. On GPUs each step then waits for the loss of the step before. Online, wandb keeps "
        "its first values of the steps that are repeated",
        at_least=0,
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32",
        "bf16: matmuls run in bfloat16 by autocast, while parameters and optimizer stay fp32",
    )
    fp32_matmul: Literal["ieee", "tf32"] = option(
        "ieee",
        "precision of the float32 matrix products inside memories, on GPUs; ieee: exact float32; "
        "tf32: factors of 10 bits with float32 sums, several times as fast. It does not change "
        "gates, factors of scans or any other product. In a bf16 run, kernels of an installed "
        "package (docs/gpu.md) take queries, keys and values in bfloat16 whatever this says",
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto",
        "torch.compile of every block, each as one graph; auto: if there is a C++ (CPU) or Triton "
        "(GPU) toolchain; without one, or if a block does not compile, the run is uncompiled and "
        "its log says why; on: that is an error instead",
    )
    recompute: Literal["none", "selective", "full"] = option(
        "selective",
        "what a block computes again in its backward pass instead of keeping it; none: nothing; "
        "selective: all but matmuls, attention, scans and masks; full: all but its input and "
        "masks. At the paper's size a step takes 592 MB with selective; with full, 447 MB and 11% "
        "more time",
    )
    profile: list[int] = option(
        [],
        "first and last step to profile, such as [20, 22]; empty: none. Every rank writes a Chrome "
        "trace (ui.perfetto.dev shows it) to logs/profile/ in the run directory, and the ten "
        "slowest kernels, on CPUs operators, to its log. A GPU that runs out of memory leaves a "
        "snapshot there in any case; with this setting it also says which line asked for what",
        at_least=1,
    )
    seed: int = option(0, "seed of initial weights, dropout and data order", at_least=0)
