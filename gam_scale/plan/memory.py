"""Peak memory of one rank's training step, by category, for every engine."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from gam_scale.model.loss import CHUNK_ELEMENTS
from gam_scale.plan.activations import FP32, BlockMemory, Setting, block_memory, setting
from gam_scale.plan.job import Job


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at one moment."""

    parameters: float = 0  # what the rank stores, not what it gathers
    gradients: float = 0
    optimizer: float = 0  # Adam's moments, and ZeRO's own copy of the parameters
    activations: float = 0  # kept tensors and the working space of one block's backward pass
    logits: float = 0  # of one chunk of tokens
    buffers: float = 0  # gathered parameters, bf16 copies, buckets of collectives
    moment: str = ""  # when: in the loss, in the first or last block's backward pass, ...

    @property
    def total(self) -> float:
        return sum(getattr(self, name) for name in CATEGORIES)


CATEGORIES = [f.name for f in fields(Memory) if f.name != "moment"]


def peak_memory(job: Job) -> Memory:
    """The fullest moment of a training step, on the rank that holds most.

    Between the ends of a backward pass activations shrink and gradients grow block by block, both
    linearly, so the peak is at one of its ends, in the loss, or where gradients are exchanged.
    """
    return max(_moments(job), key=lambda memory: memory.total)


@dataclass(frozen=True)
class _Holding:
    """What an engine holds in one rank, in bytes."""

    parameters: float
    optimizer: float
    accumulated: float  # gradients there before the last micro-batch's backward pass
    left: float  # share of a block's gradients that stays after its backward pass
    gathered: float  # parameters of other ranks, and what else is there during forward passes
    bucket: float  # where gradients wait for their collective, during backward passes
    exchange: Memory  # gradients and buffers while they are exchanged, at the step's end


def _moments(job: Job) -> Iterator[Memory]:
    run = setting(job.config, job.micro_rows)
    held, weights, model = _HOLDINGS[job.engine](job), job.weights, job.config.model
    block = block_memory(model, run)
    head = weights.head * FP32
    blocks_gradients = weights.n_blocks * weights.block * FP32 * held.left
    all_gradients = held.accumulated + weights.total * FP32 * held.left
    one_block = weights.block * FP32
    copies = _bf16_copies(job, run)

    # FSDP2 has none to exchange until a block is done, and what that one kept is free again.
    first_bucket = max(0.0, held.bucket - (block.kept if job.engine == "fsdp" else 0.0))

    def moment(what: str, **bytes: float) -> Memory:
        return Memory(held.parameters, optimizer=held.optimizer, moment=what, **bytes)

    yield _loss(job, run, block, held)
    # The head's gradient is whole from the loss on: the embedding adds to it at the very end.
    yield moment(
        "first backward",
        gradients=held.accumulated + head,
        activations=weights.n_blocks * block.kept + block.working + _embedding_mask(job, run),
        buffers=held.gathered
        + first_bucket
        + (copies if run.recompute == "none" else copies / weights.n_blocks),
    )
    yield moment(
        "last backward",
        gradients=held.accumulated + head + blocks_gradients * (1 - 1 / weights.n_blocks),
        activations=block.kept + block.working + _embedding_mask(job, run),
        buffers=held.gathered + held.bucket + copies / weights.n_blocks,
    )
    yield moment(
        "last gradients",
        gradients=held.accumulated + head + blocks_gradients + (1 - held.left) * one_block,
        activations=block.kept + run.tokens * model.d_model * FP32,
        buffers=held.gathered + held.bucket,
    )
    yield moment(
        "embedding's backward",
        gradients=max(all_gradients, held.accumulated + blocks_gradients + head) + head,
        activations=run.tokens * model.d_model * FP32,
        buffers=held.gathered + held.bucket,
    )
    yield moment("exchange", gradients=held.exchange.gradients, buffers=held.exchange.buffers)


def _loss(job: Job, run: Setting, block: BlockMemory, held: _Holding) -> Memory:
    """The chunked loss, which makes the head's gradient: see :mod:`gam_scale.model.loss`."""
    weights, model = job.weights, job.config.model
    vocab, width = model.vocab_size, model.d_model
    chunks = -(-run.tokens * vocab // CHUNK_ELEMENTS)
    rows = -(-run.tokens // chunks)
    if run.compute == FP32:
        # One buffer: softmax and gradient take the logits' place.
        logits = rows * (vocab + width) * FP32
    else:
        # bf16 logits, their log-softmax in fp32 (on a CPU their fp32 copy too), and what the chunk
        # before left behind: another log-softmax and a bf16 gradient.
        per_logit = 2 + FP32 + (FP32 if run.on_cpu else 0) + (FP32 + 2 if chunks > 1 else 0)
        logits = rows * vocab * per_logit
    buffers = held.gathered + _bf16_copies(job, run)
    if run.compute != FP32 and job.engine != "fsdp":
        buffers += weights.head * run.compute
    return Memory(
        held.parameters,
        gradients=held.accumulated + weights.head * FP32,
        optimizer=held.optimizer,
        # Beside the blocks': the final norm's input and output, and the output's gradient.
        activations=weights.n_blocks * block.kept
        + 3 * run.tokens * width * FP32
        + _embedding_mask(job, run),
        logits=logits,
        buffers=buffers,
        moment="loss",
    )


def _embedding_mask(job: Job, run: Setting) -> float:
    return run.tokens * job.config.model.d_model if job.config.model.dropout else 0


def _bf16_copies(job: Job, run: Setting) -> float:
    """Autocast's copies of the blocks' weights, kept until the loss is done.

    A compiled block that recomputes makes them anew, so one block's at a time; FSDP2 gathers in
    bf16 to begin with.
    """
    if run.compute == FP32 or job.engine == "fsdp":
        return 0.0
    n = 1 if run.compiled and run.recompute != "none" else job.weights.n_blocks
    return n * job.weights.cast * run.compute


def _plain(job: Job) -> _Holding:
    """Everything on every rank; gradients are summed in a flat copy (DeepSpeed: by buckets)."""
    whole = job.weights.total * FP32
    bucket = whole if job.engine == "torch" else min(whole, _DEFAULT_BUCKET * FP32)
    flat = bucket if job.world_size > 1 else 0
    accumulated = whole if job.micro_batches > 1 else 0
    left = 0 if accumulated else 1
    exchange = Memory(gradients=whole, buffers=flat)
    return _Holding(whole, 2 * whole, accumulated, left, 0, 0, exchange)


_DEFAULT_BUCKET = 500_000_000
"""Elements of DeepSpeed's buckets where its options do not say."""


def _zero_1(job: Job) -> _Holding:
    """Moments sharded; gradients exchanged through buckets."""
    whole, shard = job.weights.total * FP32, job.weights.total * FP32 / job.world_size
    bucket, flat = _buckets(job)
    # A first bucket leaves the rank's own share behind, then a second is copied for its collective.
    copies = flat + shard if job.low_precision_linears else max(flat, shard)
    accumulated, left = (whole, 0) if job.micro_batches > 1 else (0, 1)
    exchange = Memory(gradients=whole, buffers=bucket + copies)
    return _Holding(whole, _offloaded(job, 2 * shard), accumulated, left, 0, bucket, exchange)


def _zero_2(job: Job) -> _Holding:
    """As stage 1, but a reduced gradient leaves only the rank's own share behind."""
    whole, shard = job.weights.total * FP32, job.weights.total * FP32 / job.world_size
    bucket, flat = _buckets(job)
    accumulated = shard if job.micro_batches > 1 else 0
    gradients = accumulated + shard + max(shard, job.weights.head * FP32)
    exchange = Memory(gradients=gradients, buffers=bucket + flat)
    left = 1 / job.world_size
    return _Holding(whole, _offloaded(job, 2 * shard), accumulated, left, 0, bucket, exchange)


def _buckets(job: Job) -> tuple[float, float]:
    """Bytes of DeepSpeed's buckets and of the copy that their largest collective works on.

    What is sent in bf16 has a bucket of its own (of fp32 numbers but in stage 3), and is copied
    once more to convert it. What is too large for a bucket is copied alone.
    """
    bucket = job.zero_option("reduce_bucket_size", _DEFAULT_BUCKET) * FP32
    flat = min(max(bucket, job.weights.head * FP32), job.weights.total * FP32)
    if not job.low_precision_linears:
        return bucket, flat
    return bucket * (1.5 if job.engine == "zero3" else 2), flat * 1.5


def _zero_3(job: Job) -> _Holding:
    """Everything sharded; blocks gathered one ahead, and kept as far as DeepSpeed's reuse goes."""
    weights = job.weights
    shard = weights.total * FP32 / job.world_size
    _, flat = _buckets(job)
    # Whatever it sends, DeepSpeed gathers into fp32. An eager block that recomputes nothing keeps
    # views of its gathered weights, which freeing the parameter does not free.
    train = job.config.train
    keeps = train.recompute == "none" and train.compile == "off"
    blocks = weights.n_blocks if keeps else min(weights.n_blocks, job.reused_blocks + 2)
    held = (weights.outside + (blocks + 1) * weights.block) * FP32
    parameters = 0 if job.config.parallel.offload == "parameters" else shard
    gradients = _offloaded(job, shard)  # a flat buffer of the rank's share, there all the time
    exchange = Memory(gradients=gradients, buffers=held + flat)
    return _Holding(parameters, _offloaded(job, 2 * shard), gradients, 0, held, 0, exchange)


def _offloaded(job: Job, size: float) -> float:
    return 0 if job.config.parallel.offload != "none" else size


def _fsdp(job: Job) -> _Holding:
    """Everything sharded by rows; two blocks gathered at once, or all if they are not resharded."""
    weights = job.weights
    shard = weights.row_shard(job.shard_ranks) * FP32
    offloads = job.config.parallel.offload == "parameters"
    blocks = 2 if job.config.parallel.reshard_after_forward else weights.n_blocks
    in_flight = min(blocks + 1, weights.n_blocks + 1)  # one is being copied out of its flat buffer
    gathered = (weights.outside + in_flight * weights.block) * job.compute_bytes
    if job.micro_batches > 1:
        gathered += weights.outside * FP32  # the last collective's input lives until the next one
    bucket = weights.block * (job.compute_bytes + FP32)  # gradients as computed, and flat in fp32
    accumulated = shard if job.micro_batches > 1 and not offloads else 0
    left = 0 if accumulated or offloads else 1 / job.shard_ranks
    outside = weights.outside * (job.compute_bytes + FP32)
    exchange = Memory(
        gradients=0 if offloads else shard,
        buffers=weights.outside * job.compute_bytes + outside,
    )
    parameters = 0 if offloads else shard
    return _Holding(parameters, 2 * parameters, accumulated, left, gathered, bucket, exchange)


_HOLDINGS = {
    "torch": _plain,
    "zero0": _plain,
    "zero1": _zero_1,
    "zero2": _zero_2,
    "zero3": _zero_3,
    "fsdp": _fsdp,
}
