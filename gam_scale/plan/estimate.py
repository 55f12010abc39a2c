"""FLOPs, time and cost of a step, and the cheapest settings that fit."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gam_scale.errors import UserError
from gam_scale.plan import timing
from gam_scale.plan.activations import layer_work, setting
from gam_scale.plan.communication import Collective, collectives, overlaps
from gam_scale.plan.gpus import Gpu
from gam_scale.plan.job import Job
from gam_scale.plan.memory import Memory, kept_bytes, peak_memory, updated_bytes

_RECOMPUTE = ("none", "selective", "full")  # from the fastest to the smallest
_Key = tuple[float, int, float, int]


@dataclass(frozen=True)
class Estimate:
    """One job under one engine and set of options, on one kind of GPU."""

    label: str
    job: Job
    gpu: Gpu
    share: float  # of the peak rate that matrix products reach

    @cached_property
    def memory(self) -> Memory:
        return peak_memory(self.job)

    @cached_property
    def collectives(self) -> list[Collective]:
        return collectives(self.job)

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.gpu.usable_bytes

    @property
    def tokens(self) -> int:
        """Tokens of one step over all ranks."""
        return self.job.config.train.global_batch_size * self.job.config.data.seq_len

    @cached_property
    def flops(self) -> float:
        """FLOPs of one step over all ranks: three times the forward pass, nothing recomputed."""
        forward = self.job.weights.model.flops_per_token(self.job.config.data.seq_len)
        return 3 * forward * self.tokens

    @cached_property
    def extra_flops(self) -> float:
        """FLOPs of one step over all ranks beyond :attr:`flops`.

        They are recomputation, and what a written memory's chunks compute beyond its recurrence.
        """
        model, length = self.job.config.model, self.job.config.data.seq_len
        run = setting(self.job.config, self.job.config.train.global_batch_size)
        blocks, extra = self.job.weights.model.blocks, 0.0
        for block in blocks:
            done = layer_work(model, block.layer, run)
            if block.layer.computes_in_chunks:
                counted = 3 * block.flops_per_token(length) * run.tokens
                extra += max(0.0, done.flops + done.scan_flops - counted)
            else:
                plain = layer_work(model, block.layer, run._replace(recompute="none"))
                extra += done.flops - plain.flops
        return extra * self.job.config.parallel.context  # each rank has a part of the tokens

    @cached_property
    def fp32_flops(self) -> float:
        """FLOPs of one step over all ranks that autocast to bf16 leaves in fp32; 0 in an fp32 run.

        They are the products of written memories, and of Mamba's step sizes.
        """
        config = self.job.config
        if config.train.precision == "fp32":
            return 0.0
        work = self.job.work(config.train.global_batch_size)
        return work.fp32_flops * config.parallel.context

    @cached_property
    def computing(self) -> timing.Seconds:
        """Seconds that the rank with most sequences computes in a step, by what limits them."""
        job, total = self.job, timing.Seconds()
        model, run = job.config.model, setting(job.config, job.micro_rows)
        for layer, n in Counter(model.stack()).items():
            seconds = timing.layer_seconds(model, layer, run, self.gpu, self.share)
            total = total.plus(seconds, n)
        head = job.weights.head, model.d_model, run, self.gpu, self.share
        total = total.plus(timing.head_seconds(*head, capped=model.logit_softcap > 0))
        sizes = updated_bytes(job), kept_bytes(job), job.update.flops
        whole = timing.update_seconds(*sizes, run, self.gpu, self.share)
        return whole.plus(total, job.rows / job.micro_rows)

    @property
    def compute_seconds(self) -> float:
        """Sum of :attr:`computing`: nothing is assumed to run side by side."""
        return self.computing.total

    @property
    def communication_seconds(self) -> float:
        """Sum over all collectives, each at the rate of the slowest link that it crosses."""
        return sum(map(self._seconds, self.collectives))

    def _seconds(self, collective: Collective) -> float:
        inside = collective.stays_in_node(self.job.gpus_per_node)
        return collective.sent / (self.gpu.link_bytes if inside else self.gpu.network_bits / 8)

    @property
    def sent_bytes(self) -> float:
        """Bytes that each rank sends in one step."""
        return sum(c.sent for c in self.collectives)

    @property
    def step_seconds(self) -> float:
        """The longer of computing and communicating where they overlap, else their sum.

        Two exchanges overlap with nothing, since something waits for them: a layer for those among
        the ranks of a sequence, the optimizer for those of matrices that it steps whole.
        """
        alone = ("sequences", "matrices")
        waited = sum(self._seconds(c) for c in self.collectives if c.what in alone)
        busy = self.compute_seconds + waited
        sending = self.communication_seconds - waited
        return max(busy, sending) if overlaps(self.job) else busy + sending

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def gpu_seconds_per_token(self) -> float:
        return self.job.world_size / self.tokens_per_second


def engines(job: Job, gpu: Gpu, share: float) -> list[Estimate]:
    """Return estimates for every engine and stage, with the job's own batches and recomputation.

    Engines that the job's raw DeepSpeed options rule out are left out.
    """
    return [Estimate(label, job, gpu, share) for label, job in _variants(job)]


def cheapest(job: Job, gpu: Gpu, share: float) -> Estimate:
    """Return the estimate with the fewest GPU-seconds per token that fits in memory.

    All engines, recomputations and micro-batches are compared. Ties, frequent among engines that
    hide their communication, go to less recomputation, less traffic and larger micro-batches. If
    nothing fits, the estimate that comes nearest to fitting is returned.
    """
    every = [
        Estimate(label, changed, gpu, share)
        for label, variant in _variants(job)
        for changed in _batches_and_recomputation(variant)
    ]
    fitting = [e for e in every if e.fits]
    if not fitting:
        return min(every, key=lambda e: e.memory.total)
    return min(fitting, key=_preference)


def _preference(estimate: Estimate) -> _Key:
    job = estimate.job
    return (
        float(f"{estimate.gpu_seconds_per_token:.3g}"),
        _RECOMPUTE.index(job.config.train.recompute),
        estimate.sent_bytes,
        -job.micro_rows,
    )


def _variants(job: Job) -> Iterator[tuple[str, Job]]:
    configured = job.config.parallel
    options: list[tuple[str, str, dict[str, Any]]] = [
        ("torch", "torch", {}),
        *((f"zero stage {stage}", f"zero{stage}", {}) for stage in range(4)),
        ("fsdp", "fsdp", {}),
        ("fsdp kept", "fsdp", {"reshard_after_forward": False}),
    ]
    widths = {job.gpus_per_node} if job.nodes > 1 else set()
    if configured.engine == "fsdp":
        widths.add(configured.shard_ranks)
    for width in sorted(widths - {0, 1, job.world_size}):
        options.append((f"fsdp/{width}", "fsdp", {"shard_ranks": width}))
        kept = {"shard_ranks": width, "reshard_after_forward": False}
        options.append((f"fsdp/{width} kept", "fsdp", kept))
    for label, engine, settings in options:
        try:
            variant = job.running(engine, **settings).check()
        except UserError:
            if job.under(engine, **settings) == configured:
                raise
            continue
        yield label, variant


def _batches_and_recomputation(job: Job) -> Iterator[Job]:
    """Yield the job with every micro-batch and recomputation that a run would accept."""
    sizes = {1 << i for i in range(job.rows.bit_length())} | {job.rows}
    for size in sorted(sizes | {job.config.train.micro_batch_size}):
        for recompute in _RECOMPUTE:
            with suppress(UserError):
                yield job.having(train={"micro_batch_size": size, "recompute": recompute}).check()
