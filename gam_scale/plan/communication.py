"""What one optimizer step sends between ranks, collective by collective."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gam_scale.plan.activations import FP32
from gam_scale.plan.job import Job

_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "shift"]


@dataclass(frozen=True)
class Collective:
    """One kind of exchange, summed over a step."""

    op: Operation
    what: Literal["gradients", "parameters", "sequences", "matrices"]
    # Of whole tensors, before scattering or after gathering; in an all-to-all, of all ranks'
    # tensors together; in a shift, of what one rank passes on.
    bytes: float
    ranks: int  # in each group
    stride: int = 1  # from one rank of a group to the next

    @property
    def sent(self) -> float:
        """Bytes that each rank sends in a ring: (n - 1) / n of the tensor, all-reduce twice that.

        No algorithm needs less when all links are alike; a tree sends as much. In an all-to-all
        each rank has 1 / n of the tensors, and keeps 1 / n of its part. In a shift each rank sends
        to the next one, and the last rank to none.
        """
        if self.op == "all_to_all":
            return self.bytes * (self.ranks - 1) / self.ranks**2
        if self.op == "shift":
            return self.bytes
        return _PASSES[self.op] * self.bytes * (self.ranks - 1) / self.ranks

    def stays_in_node(self, gpus_per_node: int) -> bool:
        """Return whether every group lies within a node, ranks being numbered node by node."""
        return gpus_per_node % (self.ranks * self.stride) == 0


def collectives(job: Job) -> list[Collective]:
    """Return all exchanges of a step, except for the few numbers of norms and losses.

    ZeRO stages 1 and 2 reduce whole buckets to all ranks with ``use_multi_rank_bucket_allreduce``,
    otherwise each part of a bucket to its owner, which sends as much as a reduce-scatter.
    """
    exchanges = [*_COLLECTIVES[job.engine](job), *_sequences(job), _matrices(job)]
    return [c for c in exchanges if c.ranks > 1 and c.bytes]


def _sequences(job: Job) -> Iterator[Collective]:
    """Yield what the ranks of one sequence exchange inside the blocks, which wait for it.

    Convolutions shift their last tokens, memories gather one folded state from each rank, and
    attention gathers keys and values; the gradients of all these go the other way.
    """
    ranks = job.config.parallel.context
    if ranks == 1:
        return
    total = job.work(job.rows).exchanged
    yield Collective("all_gather", "sequences", total.all_gather, ranks)
    yield Collective("reduce_scatter", "sequences", total.reduce_scatter, ranks)
    yield Collective("shift", "sequences", total.shift, ranks)


def _matrices(job: Job) -> Collective:
    """Return the exchange of matrices that one rank steps whole: parts go there, updates back."""
    return Collective(
        "all_to_all", "matrices", job.update.sent, job.axes.holders if job.cuts else 1
    )


def overlaps(job: Job) -> bool:
    """Return whether the engine is assumed to hide communication behind the blocks' computation.

    DeepSpeed's stage 2 reduces on the stream that computes, unless ``overlap_comm`` is set.
    """
    if job.engine in ("zero2", "zero3"):
        return bool(job.zero_option("overlap_comm", job.engine == "zero3"))
    return job.engine == "fsdp"


def _plain(job: Job) -> Iterator[Collective]:
    yield Collective("all_reduce", "gradients", job.weights.total * FP32, job.world_size)


def _zero_1(job: Job) -> Iterator[Collective]:
    """Yield gradients, once a step, in stage 2 once a micro-batch; updated parameters once."""
    times = job.micro_batches if job.engine == "zero2" else 1
    whole_buckets = job.zero_option("use_multi_rank_bucket_allreduce", True)
    op: Operation = "all_reduce" if whole_buckets else "reduce_scatter"
    yield Collective(op, "gradients", times * _gradients(job), job.world_size)
    yield Collective("all_gather", "parameters", job.weights.total * FP32, job.world_size)


def _zero_3(job: Job) -> Iterator[Collective]:
    """Yield parameters, gathered twice a micro-batch or once if they stay till backward; gradients.

    Parameters up to a size are never freed: they are gathered once a step, after their update.
    """
    weights, ranks = job.weights, job.world_size
    threshold = job.zero_option("stage3_param_persistence_threshold", 100_000)
    persistent = weights.up_to(threshold) * FP32
    low = weights.of_modules(job.low_precision_modules, above=threshold)
    gathered = weights.total * FP32 - persistent - low * (FP32 - job.compute_bytes)
    # Blocks that stay gathered are the last ones; embeddings go with the first block.
    reused = sum(weights.blocks[len(weights.blocks) - job.reused_blocks :]) / sum(weights.blocks)
    parameters = persistent + gathered * (2 - reused) * job.micro_batches
    yield Collective("all_gather", "parameters", parameters, ranks)
    yield Collective("reduce_scatter", "gradients", _gradients(job) * job.micro_batches, ranks)


def _gradients(job: Job) -> float:
    """Return the bytes of one exchange of all gradients in ZeRO stages 1 to 3."""
    weights = job.weights
    low = weights.of_modules(job.low_precision_modules)
    return weights.total * FP32 - low * (FP32 - job.compute_bytes)


def _fsdp(job: Job) -> Iterator[Collective]:
    """Yield FSDP2's exchanges, with each parameter's rows padded to a multiple of the ranks.

    The padding matters where there are more ranks than rows.
    """
    ranks, times = job.axes.holders, job.micro_batches
    padded = job.weights.row_shard(ranks) * ranks
    # The last block, the embeddings and the norm stay gathered until the backward pass.
    whole, once = job.weights.gathered_bytes(ranks, job.compute_bytes)
    parameters = 2 * whole - once if job.config.parallel.reshard_after_forward else whole
    yield Collective("all_gather", "parameters", parameters * times, ranks)
    yield Collective("reduce_scatter", "gradients", padded * FP32 * times, ranks)
    replicas = job.axes.replicate
    yield Collective("all_reduce", "gradients", padded * FP32 / ranks, replicas, stride=ranks)


_COLLECTIVES = {
    "torch": _plain,
    "zero0": _plain,
    "zero1": _zero_1,
    "zero2": _zero_1,
    "zero3": _zero_3,
    "fsdp": _fsdp,
}
