"""Peak memory of one rank's training step, by category, for every engine."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from gam_scale.plan.activations import FP32, Setting, loss_bytes, setting
from gam_scale.plan.job import Job
from gam_scale.plan.trace import BlockTrace


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at one moment."""

    parameters: float = 0  # that the rank stores; gathered ones are buffers
    gradients: float = 0
    optimizer: float = 0  # states that the optimizer keeps, such as Adam's moments
    activations: float = 0  # kept tensors and the working space of one block's backward pass
    logits: float = 0  # of the loss's chunks of tokens, and what is computed from them
    buffers: float = 0  # gathered parameters, bf16 copies, buckets of collectives
    moment: str = ""  # "loss", "backward pass of layer 0", ...

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in CATEGORIES)


CATEGORIES = [f.name for f in fields(Memory) if f.name != "moment"]


def peak_memory(job: Job) -> Memory:
    """Return the fullest moment of a training step, on the rank that holds most.

    It is in the loss, in a layer's backward pass or at its end, or where gradients are exchanged:
    as the backward pass goes on, activations shrink and gradients grow.
    """
    return max(_moments(job), key=lambda memory: memory.total)


def updated_bytes(job: Job) -> float:
    """Return the bytes of the parameters that each rank updates; offloaded ones do not count."""
    return _HOLDINGS[job.engine](job).updated


def kept_bytes(job: Job) -> float:
    """Return the bytes that the optimizer keeps on the rank's device."""
    updated = updated_bytes(job)
    return job.update.kept(updated / (job.weights.total * FP32)) if updated else 0.0


@dataclass(frozen=True)
class _Holding:
    """What an engine holds on one rank's device, in bytes."""

    parameters: float
    updated: float  # parameters that the rank updates
    accumulated: float  # gradients that exist before the last micro-batch's backward pass
    gradient_share_left: float  # share of a block's gradients that stays after its backward pass
    gathered: float  # parameters from other ranks, and other buffers of the passes
    bucket: float  # in which gradients wait for their collective, during backward passes
    exchange: Memory  # gradients and buffers during the exchange at the step's end


def _moments(job: Job) -> Iterator[Memory]:
    run = setting(job.config, job.micro_rows)
    held, weights = _HOLDINGS[job.engine](job), job.weights
    layers = job.layers(job.micro_rows)
    head, mask = weights.head * FP32, _embedding_mask(job, run)
    stream = run.tokens * job.config.model.d_model * FP32
    has_copies = job.engine != "fsdp"  # of weights in bf16, as which fsdp gathers them
    optimizer = kept_bytes(job)

    def moment(what: str, **bytes: float) -> Memory:
        return Memory(held.parameters, optimizer=optimizer, moment=what, **bytes)

    yield _loss(job, run, layers, held)
    kept = sum(layer.kept.activations for layer in layers)
    copies = sum(layer.kept.copies for layer in layers)
    # The loss makes the head's whole gradient; the embedding adds to it at the very end.
    gradients = held.accumulated + head
    for i, (layer, size) in reversed(list(enumerate(zip(layers, weights.blocks, strict=True)))):
        bucket = held.bucket
        if i == len(layers) - 1 and job.engine == "fsdp":
            # The first block to go back has none waiting until its end, when what it kept is free.
            bucket = max(0.0, bucket - layer.kept.activations)
        kept -= layer.kept.activations
        copies -= layer.kept.copies
        yield moment(
            f"backward pass of layer {i}",
            gradients=gradients + layer.peak.gradients,
            activations=kept + layer.peak.activations + mask,
            buffers=held.gathered + bucket + has_copies * (copies + layer.peak.copies),
        )
        yield moment(
            f"end of layer {i}",
            gradients=gradients + size * FP32,
            activations=kept + 2 * stream + mask,  # 2: the layer's input, and its gradient
            buffers=held.gathered + held.bucket + has_copies * copies,
        )
        gradients += size * FP32 * held.gradient_share_left
    yield moment(
        "embedding's backward pass",
        # The embedding's gradient, beside the one that the head left.
        gradients=gradients + head,
        activations=stream,
        buffers=held.gathered + held.bucket,
    )
    yield moment("exchange", gradients=held.exchange.gradients, buffers=held.exchange.buffers)
    if job.cuts:
        # Three copies of the matrices that a rank steps whole: as sent, as received, and joined.
        whole = 3 * job.update.whole_bytes
        yield moment("update", gradients=held.exchange.gradients, buffers=whole)


def _loss(job: Job, run: Setting, layers: list[BlockTrace], held: _Holding) -> Memory:
    """Return the memory during the chunked loss, which makes the head's gradient.

    See :mod:`gam_scale.model.loss`.
    """
    weights, model = job.weights, job.config.model
    width = model.d_model
    buffers = held.gathered
    if job.engine != "fsdp":
        buffers += sum(layer.kept.copies + layer.cached for layer in layers)
        if run.compute != FP32:
            buffers += weights.head * run.compute
    return Memory(
        held.parameters,
        gradients=held.accumulated + weights.head * FP32,
        optimizer=kept_bytes(job),
        # Those of the layers; the final norm's input and output, and the output's gradient.
        activations=sum(layer.kept.activations for layer in layers)
        + 3 * run.tokens * width * FP32
        + _embedding_mask(job, run),
        logits=loss_bytes(model, run),
        buffers=buffers,
        moment="loss",
    )


def _embedding_mask(job: Job, run: Setting) -> float:
    return run.tokens * job.config.model.d_model if job.config.model.dropout else 0


def _plain(job: Job) -> _Holding:
    """Return what plain engines hold: all on every rank, and a flat copy (DeepSpeed: a bucket) in
    which gradients are summed."""
    whole = job.weights.total * FP32
    bucket = whole if job.engine == "torch" else min(whole, _DEFAULT_BUCKET * FP32)
    flat = bucket if job.world_size > 1 else 0
    accumulated = whole if job.micro_batches > 1 else 0
    share_left = 0 if accumulated else 1
    exchange = Memory(gradients=whole, buffers=flat)
    return _Holding(whole, whole, accumulated, share_left, 0, 0, exchange)


_DEFAULT_BUCKET = 500_000_000
"""Elements of DeepSpeed's buckets if its options give no size."""


def _zero_1(job: Job) -> _Holding:
    """Return what stage 1 holds: shards of optimizer states; gradients go through buckets."""
    whole, shard = job.weights.total * FP32, job.weights.total * FP32 / job.world_size
    bucket, flat = _buckets(job)
    # Of two buckets, the first has left the rank's own share when the second is copied to be sent.
    copies = flat + shard if job.low_precision_modules else max(flat, shard)
    accumulated, share_left = (whole, 0) if job.micro_batches > 1 else (0, 1)
    exchange = Memory(gradients=whole, buffers=bucket + copies)
    return _Holding(whole, _offloaded(job, shard), accumulated, share_left, 0, bucket, exchange)


def _zero_2(job: Job) -> _Holding:
    """Return what stage 2 holds: as stage 1, but only the rank's own share of reduced gradients."""
    whole, shard = job.weights.total * FP32, job.weights.total * FP32 / job.world_size
    bucket, flat = _buckets(job)
    accumulated = shard if job.micro_batches > 1 else 0
    gradients = accumulated + shard + max(shard, job.weights.head * FP32)
    exchange = Memory(gradients=gradients, buffers=bucket + flat)
    share_left = 1 / job.world_size
    return _Holding(whole, _offloaded(job, shard), accumulated, share_left, 0, bucket, exchange)


def _buckets(job: Job) -> tuple[float, float]:
    """Return the bytes of DeepSpeed's buckets, and of the copy that the largest collective takes.

    Gradients that are sent in bf16 have their own bucket, of fp32 numbers, and are copied once more
    to be converted. A gradient that no bucket holds is copied alone: the head's, which is never
    sent in bf16. In stage 3 a bucket is no buffer, but the gradients that wait themselves, few of
    them to be sent in fp32 if others are sent in bf16.
    """
    bucket = job.zero_option("reduce_bucket_size", _DEFAULT_BUCKET) * FP32
    flat = min(max(bucket, job.weights.head * FP32), job.weights.total * FP32)
    if not job.low_precision_modules:
        return bucket, flat
    if job.engine == "zero3":
        return bucket, max(flat, bucket * 1.5)
    return bucket * 2, flat * 1.5


def _zero_3(job: Job) -> _Holding:
    """Return what stage 3 holds: shards of all; blocks gathered one ahead, or kept for reuse."""
    weights = job.weights
    shard = weights.total * FP32 / job.world_size
    bucket, flat = _buckets(job)
    # Whatever dtype it sends, DeepSpeed gathers into fp32. An eager block that recomputes nothing
    # keeps views of its gathered weights: freeing the parameter does not free their memory.
    train = job.config.train
    keeps = train.recompute == "none" and train.compile == "off"
    blocks = len(weights.blocks) if keeps else job.reused_blocks + 2
    # Gradients wait until they fill a bucket.
    held = (weights.outside + weights.adjacent(blocks) + weights.adjacent(1)) * FP32 + bucket
    parameters = 0 if job.config.parallel.offload == "parameters" else shard
    gradients = _offloaded(job, shard)  # a flat buffer of the rank's share, there all the time
    exchange = Memory(gradients=gradients, buffers=held + flat)
    return _Holding(parameters, _offloaded(job, shard), gradients, 0, held, 0, exchange)


def _offloaded(job: Job, size: float) -> float:
    return 0 if job.config.parallel.offload != "none" else size


def _fsdp(job: Job) -> _Holding:
    """Return what FSDP2 holds: shards by rows; two gathered blocks, or all if not resharded."""
    weights = job.weights
    shard = weights.row_shard(job.axes.holders) * FP32
    offloads = job.config.parallel.offload == "parameters"
    blocks = 2 if job.config.parallel.reshard_after_forward else len(weights.blocks)
    # One block more is being copied out of its flat buffer.
    in_flight = weights.adjacent(blocks) + weights.adjacent(1)
    gathered = (weights.outside + in_flight) * job.compute_bytes
    if job.micro_batches > 1:
        gathered += weights.outside * FP32  # the last collective's input lives until the next one
    each = job.compute_bytes + FP32  # a gradient as it is computed, and flat in fp32
    bucket = weights.adjacent(1) * each
    accumulated = shard if job.micro_batches > 1 and not offloads else 0
    share_left = 0 if accumulated or offloads else 1 / job.axes.holders
    exchange = Memory(
        gradients=0 if offloads else shard,
        buffers=weights.outside * (job.compute_bytes + each),
    )
    parameters = 0 if offloads else shard
    return _Holding(parameters, parameters, accumulated, share_left, gathered, bucket, exchange)


_HOLDINGS = {
    "torch": _plain,
    "zero0": _plain,
    "zero1": _zero_1,
    "zero2": _zero_2,
    "zero3": _zero_3,
    "fsdp": _fsdp,
}
