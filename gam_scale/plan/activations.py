"""Memory, computation and exchanges of a layer in a training step, from a trace.

Only this module knows how layers run on which device; :mod:`gam_scale.plan.trace` runs them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

from torch import nn

from gam_scale.config import ModelConfig, RunConfig
from gam_scale.model.lm import LanguageModel
from gam_scale.model.loss import chunk_rows
from gam_scale.model.parts import MixerConfig
from gam_scale.parallel.blocks import SEGMENT, prepare_blocks
from gam_scale.plan.gpu_blocks import peak_factor
from gam_scale.plan.trace import BlockTrace, Work, trace_block, trace_loss

FP32 = 4

_ROWS = 2
"""Sequences that are traced; activations and work are proportional to their number."""

_SEGMENTS = 4
"""Most segments that are traced; past a few, each adds as much as the one before."""


class Setting(NamedTuple):
    """How layers run, as far as their memory, FLOPs and exchanges depend on it."""

    rows: int  # sequences of one micro-batch
    length: int  # tokens of each sequence on one rank
    compute: int  # bytes of a number that a matmul takes or gives: 2 under autocast, else 4
    recompute: Literal["none", "selective", "full"]
    compiled: bool
    on_cpu: bool
    documents: bool  # positions restart within a sequence
    context: int  # ranks that share each sequence
    tf32: bool  # memories' own fp32 products may be computed in TF32

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch on one rank."""
        return self.rows * self.length


def setting(config: RunConfig, rows: int) -> Setting:
    """Return the setting of a run whose micro-batches have ``rows`` sequences on each rank."""
    return Setting(
        rows=rows,
        length=config.data.seq_len // config.parallel.context,
        compute=2 if config.train.precision == "bf16" else FP32,
        recompute=config.train.recompute,
        compiled=config.train.compile != "off",
        on_cpu=config.parallel.device == "cpu",
        documents=config.data.documents == "reset",
        context=config.parallel.context,
        tf32=config.train.fp32_matmul == "tf32",
    )


def layer_work(model: ModelConfig, layer_config: MixerConfig, run: Setting) -> Work:
    """Return what one layer computes and exchanges in a micro-batch, compiled or not."""
    return layer_trace(model, layer_config, run._replace(compiled=False)).work


def layer_trace(model: ModelConfig, layer_config: MixerConfig, run: Setting) -> BlockTrace:
    """Return the trace of one layer for a micro-batch.

    The trace of a compiled layer lacks what it computes and exchanges: see :func:`layer_work`.
    """
    traced = run._replace(rows=_ROWS, tf32=False)  # a trace does not depend on tf32
    segment = _segment(run)
    most = _SEGMENTS * segment
    if segments(layer_config, run) <= _SEGMENTS:
        block = _traced(model, layer_config, traced)
    else:
        # Trace some whole segments and the remainder of the full length; extrapolate the others.
        length = most + run.length % segment
        longer = _traced(model, layer_config, traced._replace(length=length))
        shorter = _traced(model, layer_config, traced._replace(length=length - segment))
        block = longer.extrapolated(shorter, (run.length - length) / segment)
    return block.scaled(run.rows / traced.rows)


_KNOWN: dict[tuple[str, Setting, int], BlockTrace] = {}


def _traced(model: ModelConfig, layer_config: MixerConfig, run: Setting) -> BlockTrace:
    model = replace(model, layers=[layer_config], n_layers=1, vocab_size=1, max_seq_len=1)
    masks = 0.0
    if layer_config.drops_weights and not run.on_cpu:
        # Traces run CPU kernels, which have to hold attention weights to drop some; a GPU's need
        # not. So trace without dropout, and add the masks of the layer's other two dropouts.
        masks = 2.0 * run.tokens * model.d_model if model.dropout else 0.0
        model = replace(model, dropout=0.0)
    return _known(model, run).keeping(masks)


def _known(model: ModelConfig, run: Setting) -> BlockTrace:
    key = repr(model), run, _segment(run)
    if key not in _KNOWN:
        _KNOWN[key] = trace_block(
            partial(_build, model, run),
            (run.rows, run.length, model.d_model),
            bf16=run.compute != FP32,
            documents=run.documents,
            context=run.context,
            rotation=model.rotation(),
            factor=peak_factor(model, model.layers[0], run.recompute),
        )
    return _KNOWN[key]


def _build(model: ModelConfig, run: Setting, backend: Callable[..., Any]) -> nn.Module:
    """Build a layer as it is trained; the embedding that comes with it does not matter."""
    whole = LanguageModel(model)
    prepare_blocks(
        whole, run.recompute, compiled=run.compiled, backend=backend, segment=_segment(run)
    )
    return whole.blocks[0]


def segments(layer_config: MixerConfig, run: Setting) -> int:
    """Return the number of parts of a sequence that a layer takes one after another."""
    if run.context > 1 or not layer_config.by_pieces:
        return 1
    return -(-run.length // _segment(run))


def loss_bytes(model: ModelConfig, run: Setting) -> float:
    """Return the bytes that the loss takes beside the gradients it leaves and the head's bf16 copy.

    :mod:`gam_scale.model.loss` works chunk by chunk, so that two chunks show the peak.
    """
    vocab, width = model.vocab_size, model.d_model
    rows = chunk_rows(run.tokens, vocab, "cpu" if run.on_cpu else "cuda")
    tokens = min(run.tokens, 2 * rows)
    cap = model.logit_softcap
    peak = trace_loss(tokens, vocab, width, rows, bf16=run.compute != FP32, softcap=cap)
    if run.compute != FP32:
        peak -= vocab * width * run.compute
        # The log-softmax of bf16 logits makes an fp32 copy on a CPU only.
        peak -= 0 if run.on_cpu or cap else rows * vocab * FP32
    return peak - tokens * width * FP32 - vocab * width * FP32


def _segment(run: Setting) -> int:
    return SEGMENT["cpu" if run.on_cpu else "cuda"]
