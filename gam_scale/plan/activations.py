"""What a block keeps for its backward pass, and what that pass needs besides, from shapes alone.

Each block kind has a table of the tensors that live between its forward and its backward pass,
read off the blocks themselves (saved tensors of eager and compiled blocks on a CPU, and the graphs
that the compiler's partitioner makes for a GPU). Norm statistics, positions and random states, a
few bytes per token, are left out.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

from gam_scale.config import ModelConfig, RunConfig
from gam_scale.model.selective_scan import chunk_size

FP32 = 4


class Setting(NamedTuple):
    """How blocks run, as far as their memory depends on it."""

    tokens: int  # of one micro-batch on one rank
    seq_len: int
    compute: int  # bytes of a matmul's inputs and outputs: 2 under autocast, else 4
    recompute: Literal["none", "selective", "full"]
    compiled: bool
    on_cpu: bool
    documents: bool  # positions restart within a sequence


class Tensor(NamedTuple):
    """One kept tensor: bytes per token, and the runs that keep it.

    ``keeps`` has a letter for each value of train.recompute that keeps it: n(one), s(elective) or
    f(ull), lower case in any run, upper case in eager runs only.
    """

    bytes: float
    keeps: str
    what: str

    def is_kept(self, recompute: str, compiled: bool) -> bool:
        letter = recompute[0]
        return letter in self.keeps or (not compiled and letter.upper() in self.keeps)


class BlockMemory(NamedTuple):
    """Bytes of one block."""

    kept: float  # from its forward to its backward pass
    working: float  # on top of it while its backward pass runs, weight gradients left out


def block_memory(model: ModelConfig, run: Setting) -> BlockMemory:
    """Bytes that one block keeps and works with, whatever else is in memory."""
    tensors = list(_TENSORS[model.block](model, run))
    kept = sum(t.bytes for t in tensors if t.is_kept(run.recompute, run.compiled))
    # Recomputing brings back what recompute "none" would have kept.
    replayed = sum(
        t.bytes
        for t in tensors
        if t.is_kept("none", run.compiled) and not t.is_kept(run.recompute, run.compiled)
    )
    working = _WORKING[model.block](model, run, replayed)
    return BlockMemory(run.tokens * kept, run.tokens * working)


def setting(config: RunConfig, rows: int) -> Setting:
    """The setting of a run whose micro-batches have ``rows`` sequences on each rank."""
    return Setting(
        tokens=rows * config.data.seq_len,
        seq_len=config.data.seq_len,
        compute=2 if config.train.precision == "bf16" else FP32,
        recompute=config.train.recompute,
        compiled=config.train.compile != "off",
        on_cpu=config.parallel.device == "cpu",
        documents=config.data.documents == "reset",
    )


def _gam(model: ModelConfig, run: Setting) -> Iterator[Tensor]:
    """LayerNorm, convolution and memory joined by gates, then LayerNorm and feed-forward."""
    gam, d, c = model.gam, model.d_model, run.compute
    yield Tensor(d * FP32, "nsf", "block input")
    if gam.paths != "global":
        yield Tensor(d * FP32, "n", "padded window of the convolution")
        yield Tensor(d * FP32, "N", "output of the convolution")
    if gam.paths != "local":
        yield Tensor(gam.n_slots * c, "s", "scores of the slots")
        yield Tensor(gam.n_slots * c, "n", "softmax of the scores")
        yield Tensor(d * c, "ns", "what the memory returned")
    if gam.fusion == "gate":
        n_paths = 2 if gam.paths == "both" else 1
        yield Tensor(n_paths * d * c, "ns", "gates, before the sigmoid (eager: after it)")
    yield Tensor(d * c, "n", "first norm's output")
    yield Tensor(d * FP32, "N", "residual stream after the mixer")
    yield from _feedforward(model, run)


def _attention(model: ModelConfig, run: Setting) -> Iterator[Tensor]:
    """LayerNorm, attention and projection, then LayerNorm and feed-forward."""
    d, c = model.d_model, run.compute
    yield Tensor(d * FP32, "nsf", "block input")
    yield Tensor(3 * d * c, "ns", "queries, keys and values")
    yield Tensor(d * c, "ns", "attention's output")
    yield Tensor(d * c, "n", "first norm's output")
    yield Tensor(d * c, "s", "projection's output")
    yield Tensor(d * FP32 if not run.compiled else d * c, "n", "stream after attention")
    if model.dropout:
        yield Tensor(d, "nsf", "mask of the projection's dropout")
        if not run.on_cpu:  # torch's dropout is one operator, of which both outputs are kept
            yield Tensor(d * c, "f", "projection's output after dropout")
    if _keeps_weights(model, run):
        yield from _attention_weights(model, run)
    else:
        yield Tensor(model.attention.n_heads * FP32, "ns", "log of the softmax's sums")
        if run.documents:
            yield Tensor(run.seq_len * c, "n", "document mask as numbers to add")
    yield from _feedforward(model, run)


def _keeps_weights(model: ModelConfig, run: Setting) -> bool:
    """CPU kernels that never hold the weights know no dropout; on a GPU they do."""
    return run.on_cpu and model.dropout > 0


def _attention_weights(model: ModelConfig, run: Setting) -> Iterator[Tensor]:
    """Heads x T numbers a token, fp32 in any precision."""
    weights = model.attention.n_heads * run.seq_len
    yield Tensor(weights * FP32, "ns", "scores (none: their softmax)")
    if not run.compiled:
        yield Tensor(2 * weights * FP32, "N", "dropout mask, weights after dropout")
        return
    yield Tensor(weights * FP32, "sf", "numbers drawn for dropout")
    yield Tensor(weights, "nsf", "dropout mask")
    if run.compute == FP32:
        yield Tensor(weights * FP32, "n", "weights after dropout")


def _feedforward(model: ModelConfig, run: Setting) -> Iterator[Tensor]:
    d, c, inner = model.d_model, run.compute, model.ffn_mult * model.d_model
    yield Tensor(d * c, "n", "second norm's output")
    yield Tensor(inner * c, "ns", "GELU's input")
    yield Tensor(inner * c, "n", "GELU's output")
    yield Tensor(d * c, "S", "feed-forward's output")
    if model.dropout:
        yield Tensor(d, "nsf", "mask of the last dropout")


def _mamba(model: ModelConfig, run: Setting) -> Iterator[Tensor]:
    """Projection to two halves, convolution, scan, gate, projection; E channels inside."""
    mamba, d, c = model.mamba, model.d_model, run.compute
    inner, rank = mamba.expand * d, math.ceil(d / 16)
    chunks = math.ceil(run.seq_len / chunk_size(run.seq_len))
    yield Tensor(d * FP32, "nsf", "block input")
    yield Tensor(2 * inner * c, "ns", "x and z, before the convolution and the gate")
    yield Tensor(inner * c, "n", "padded window of the convolution")
    yield Tensor(inner * FP32, "N", "output of the convolution")
    yield Tensor(inner * FP32, "n", "x after its SiLU")
    if c != FP32:
        yield Tensor(inner * c, "n", "x in the matmuls' precision")
    yield Tensor((rank + 2 * mamba.d_state) * c, "ns", "low-rank dt, B and C")
    yield Tensor(inner * FP32, "ns", "dt before its softplus")
    yield Tensor(inner * FP32, "n", "dt")
    yield Tensor(inner * FP32, "ns", "the scan's output")
    state = inner * mamba.d_state * FP32
    yield Tensor(state * chunks / run.seq_len, "ns", "the scan's state before each chunk")
    yield Tensor(inner * c, "N", "SiLU of z")
    yield Tensor(inner * c, "n", "gated output")
    yield Tensor(d * c, "S", "projection's output")
    if mamba.stack == "residual":
        yield Tensor(d * c, "n", "norm's output")
        if model.dropout:
            yield Tensor(d, "nsf", "mask of the dropout")


def _feedforward_working(model: ModelConfig, run: Setting, replayed: float) -> float:
    """At the GELU: gradients of the residual stream and, in place of its output, of its input."""
    d, c, inner = model.d_model, run.compute, model.ffn_mult * model.d_model
    at_gelu = 2 * d * FP32 + inner * c
    if model.block == "attention" and _keeps_weights(model, run):
        # Later, at the attention: the weights' gradient (compiled, in a recomputed tensor's place).
        weights = model.attention.n_heads * run.seq_len * FP32
        if run.recompute != "full" or not run.compiled:
            at_gelu = max(at_gelu, 3 * d * FP32 + weights - 2 * inner * c)
    if run.recompute == "selective" and run.compiled:
        # A compiled block recomputes late: at the GELU, its output and the norm's alone.
        return min(at_gelu + replayed, at_gelu + inner * c)
    return at_gelu + replayed


def _mamba_working(model: ModelConfig, run: Setting, replayed: float) -> float:
    """In the scan: gradients of y, z, x and dt, its input, and one chunk of states and decays."""
    mamba, c = model.mamba, run.compute
    inner = mamba.expand * model.d_model
    chunk = min(chunk_size(run.seq_len), run.seq_len)
    states = (2 * chunk + 1) * inner * mamba.d_state * FP32 / run.seq_len
    in_scan = 4 * inner * FP32 + inner * c + states
    if run.documents:
        in_scan += inner * FP32  # step sizes that are infinite where a document starts
    if run.recompute == "none" or not run.compiled:
        in_scan -= inner * (FP32 + c)  # y and the gated output, freed by then
    return in_scan + replayed


_TENSORS = {"gam": _gam, "attention": _attention, "mamba": _mamba}
_WORKING = {
    "gam": _feedforward_working,
    "attention": _feedforward_working,
    "mamba": _mamba_working,
}
