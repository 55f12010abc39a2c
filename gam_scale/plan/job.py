"""One run on given hardware, as far as its memory, traffic and time depend on it."""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from gam_scale.config import ParallelConfig, RunConfig
from gam_scale.config.axes import Axes
from gam_scale.config.rules import check, check_ranks
from gam_scale.data.stream import n_micro_batches
from gam_scale.errors import UserError
from gam_scale.parallel.optimizer import parameter_groups
from gam_scale.parallel.zero_config import engine_config, low_precision_modules
from gam_scale.plan.activations import layer_trace, layer_work, setting
from gam_scale.plan.trace import BlockTrace, Work
from gam_scale.plan.update import Update
from gam_scale.plan.weights import Weights


@dataclass(frozen=True)
class Job:
    """A config on ``nodes`` nodes of ``gpus_per_node`` GPUs, one rank a GPU."""

    config: RunConfig
    nodes: int
    gpus_per_node: int
    weights: Weights

    @classmethod
    def of(cls, config: RunConfig, nodes: int, gpus_per_node: int) -> "Job":
        """Make the job of a complete config.

        Raises:
            UserError: no rank, an unknown vocabulary, or sharding over ranks that do not divide.
        """
        for flag, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
            if value < 1:
                raise UserError(f"{flag} is {value}; expected at least 1")
        if config.model.vocab_size == 0:
            raise UserError(
                "model.vocab_size is 0, the tokenizer's, which a plan does not read; expected "
                "--set model.vocab_size=N"
            )
        if config.parallel.shard_ranks == nodes * gpus_per_node:  # which 0 means, too
            config = replace(config, parallel=replace(config.parallel, shard_ranks=0))
        return cls(config, nodes, gpus_per_node, Weights.of(config.model))

    def __post_init__(self) -> None:
        check_ranks(self.config, self.world_size)

    @property
    def world_size(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def engine(self) -> str:
        """A short name: torch, zero0 to zero3, fsdp."""
        parallel = self.config.parallel
        return f"zero{parallel.zero_stage}" if parallel.engine == "deepspeed" else parallel.engine

    @property
    def cuts(self) -> bool:
        """Whether the engine cuts the parameters that the optimizer steps, even over one rank."""
        return self.engine not in ("torch", "zero0")

    @cached_property
    def update(self) -> Update:
        """What the optimizer's step keeps, computes and sends."""
        groups = parameter_groups(self.weights.model, self.config)
        return Update.of(groups, self.axes.holders if self.cuts else 1)

    @property
    def axes(self) -> Axes:
        """The grid of the job's ranks."""
        return Axes.of(self.config.parallel, self.world_size)

    @property
    def rows(self) -> int:
        """Sequences of a step on the rank that has most; if they are cut, it has a part of each."""
        return -(-self.config.train.global_batch_size // self.axes.readers)

    @property
    def micro_batches(self) -> int:
        """Micro-batches, and so forward passes, of a step."""
        return n_micro_batches(self.config.train, self.axes.readers)

    @property
    def micro_rows(self) -> int:
        """Sequences of the largest micro-batch; :attr:`rows` are dealt out evenly."""
        return -(-self.rows // self.micro_batches)

    @property
    def compute_bytes(self) -> int:
        """Bytes of one number in a matmul."""
        return 2 if self.config.train.precision == "bf16" else 4

    @cached_property
    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's own configuration of this run."""
        # One block of each kind is enough, and spares building a deep model's outline again.
        model = self.config.model
        model = replace(model, n_layers=min(model.n_layers, len(model.pattern)))
        return engine_config(replace(self.config, model=model), self.axes.readers)

    def zero_option(self, name: str, default: int) -> int:
        """Return an option of DeepSpeed's zero_optimization section, or DeepSpeed's ``default``."""
        value = self.deepspeed["zero_optimization"].get(name, default)
        if not isinstance(value, int | float):
            raise UserError(
                f"parallel.deepspeed.zero_optimization.{name} is {value!r}; expected a number"
            )
        return int(value)

    @cached_property
    def low_precision_modules(self) -> list[type]:
        """See :func:`gam_scale.parallel.zero_config.low_precision_modules`."""
        return low_precision_modules(self.deepspeed)

    @cached_property
    def reused_blocks(self) -> int:
        """Number of blocks that stage 3 leaves gathered from their forward to their backward pass.

        DeepSpeed frees a parameter only if its next use lies ``stage3_max_reuse_distance`` (default
        a billion) parameters ahead. From a block's forward pass to its backward pass that distance
        is twice the parameters of all later blocks.
        """
        limit = self.zero_option("stage3_max_reuse_distance", 10**9)
        behind = list(accumulate(reversed(self.weights.blocks[1:]), initial=0))
        return sum(2 * n < limit for n in behind)

    def layers(self, rows: int) -> list[BlockTrace]:
        """Return the trace of each layer for ``rows`` sequences on each rank."""
        model, run = self.config.model, setting(self.config, rows)
        traces = {layer: layer_trace(model, layer, run) for layer in set(model.stack())}
        return [traces[layer] for layer in model.stack()]

    def work(self, rows: int) -> Work:
        """Return what all layers compute and exchange for ``rows`` sequences on each rank."""
        model, run = self.config.model, setting(self.config, rows)
        total = Work()
        for layer in model.stack():
            total = total.plus(layer_work(model, layer, run))
        return total

    def having(self, **sections: Any) -> "Job":
        """Return the same job with other settings: ``having(train={"recompute": "full"})``."""
        changed = {k: replace(getattr(self.config, k), **v) for k, v in sections.items()}
        return replace(self, config=replace(self.config, **changed))

    def check(self) -> "Job":
        """Return the job itself if a run would accept its settings.

        Raises:
            UserError: it would not.
        """
        check(self.config)
        if self.config.parallel.engine == "deepspeed":
            assert self.deepspeed
        return self

    def running(self, engine: str, **options: Any) -> "Job":
        """Return the same job with the settings that :meth:`under` returns."""
        return replace(self, config=replace(self.config, parallel=self.under(engine, **options)))

    def under(self, engine: str, **options: Any) -> ParallelConfig:
        """Return the settings for another engine; those that this engine lacks are reset."""
        parallel, defaults = self.config.parallel, ParallelConfig()
        stage = int(engine[4:]) if engine.startswith("zero") else defaults.zero_stage
        offload = parallel.offload if _can_offload(engine, parallel.offload) else "none"
        settings: dict[str, Any] = {
            "engine": "deepspeed" if engine.startswith("zero") else engine,
            "zero_stage": stage,
            "shard_ranks": defaults.shard_ranks,
            "reshard_after_forward": defaults.reshard_after_forward,
            "offload": offload,
            "offload_dir": parallel.offload_dir if offload != "none" and stage == 3 else "",
        }
        return replace(parallel, **settings | options)


def _can_offload(engine: str, what: str) -> bool:
    able = {"optimizer": ("zero1", "zero2", "zero3"), "parameters": ("zero3", "fsdp")}
    return engine in able.get(what, ())
