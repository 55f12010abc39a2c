"""Table 2: time and memory of one block, forward and backward, against T.

The paper measures blocks of width 512 (8 heads, 512 slots, dropout 0.1) in training mode on 16
sequences of random numbers, eager, under fp16 autocast on a GPU: 5 warm-up passes, then 20 timed
ones. The paper gives the mean of the timed passes, the page the fastest, to which other work on the
machine adds least. Memory is the most that tensors took at once, with parameters and gradients.

At scale F there are 16 F sequences, 5 F warm-up passes (at least 1) and 20 F timed ones (at least
3), with the same T and width. A CPU runs in fp32 on one thread, and the time is processor time, to
which other work on the machine adds little. There the fused block has no dropout, because with
dropout torch's CPU kernel falls back to whole score matrices.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn

from gam_scale.config import AttentionConfig, GAMConfig, ModelConfig
from gam_scale.errors import UserError
from gam_scale.experiment.code_version import code_version
from gam_scale.files import write_json
from gam_scale.hardware.memory import (
    allocated_at_most,
    keep_freed_memory,
    peak_memory_bytes,
    reset_peak_memory,
)
from gam_scale.model.context import Context
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.model.mixers.attention import AttentionBlock
from gam_scale.strict import parse_json, read_json

KINDS = ("gam", "transformer", "fused")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
BATCH, WARM_UP, TIMED = 16, 5, 20
SCORE_TENSORS = 6
"""Rough number of (sequences, heads, T, T) tensors that the published attention holds at once."""
MIB = 1 << 20


class ScoresAttentionBlock(AttentionBlock):
    """The published Transformer block, which stores scores and weights as (B, heads, T, T) tensors.

    It computes the same as :class:`AttentionBlock`, whose fused kernel stores neither.
    """

    def mix(self, h: Tensor, layout: Layout, context: Context | None) -> list[Tensor]:
        """See :meth:`Block.mix`; only for whole sequences, without documents or a context."""
        assert layout.documents is None and context is None, "a block of the benchmark only"
        q, k, v = self._heads(h, layout)
        scores = (q @ k.mT) * q.shape[-1] ** -0.5
        seen = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), dim=-1)
        return [self._out(self.dropout(weights) @ v)]


def build(kind: str, width: int = 512, heads: int = 8, dropout: float = 0.1) -> nn.Module:
    """Return a block with initial weights: ``gam``, ``transformer`` as published, or ``fused``."""
    config = ModelConfig(
        layers=["static" if kind == "gam" else "attention"],
        d_model=width,
        vocab_size=1,
        dropout=dropout,
        init="paper",
        gam=GAMConfig(n_slots=width),
        attention=AttentionConfig(heads),
    )
    layer = config.stack()[0]
    published = kind == "transformer"
    block = ScoresAttentionBlock(layer, config.shape) if published else layer.build(config.shape)
    initialise(block, config, seed=0)
    return block


def measure(kind: str, length: int, scale: float, device: str) -> dict[str, Any]:
    """Measure the fastest forward and backward pass in milliseconds, and the most bytes held.

    ``ms`` and ``bytes`` of the result are None if the block does not fit in memory.
    """
    keep_freed_memory()
    if device == "cpu":
        torch.set_num_threads(1)
    batch = sequences(scale)
    made = {"kind": kind, "T": length, "scale": scale, "batch": batch, "device": name(device)}
    if device == "cpu" and _needs(kind, batch, length) > available():
        return made | {"ms": None, "bytes": None}
    try:
        dropout = 0.0 if kind == "fused" and device == "cpu" else 0.1
        block = build(kind, dropout=dropout).to(device)
        return made | _measure(block, batch, length, scale)
    except torch.OutOfMemoryError:
        return made | {"ms": None, "bytes": None}


def _measure(block: nn.Module, batch: int, length: int, scale: float) -> dict[str, Any]:
    parameters, norm = list(block.parameters()), cast(nn.LayerNorm, block.norm1)
    device, width = parameters[0].device, norm.weight.numel()
    x = torch.randn(batch, length, width, device=device)
    layout = Layout.stream(batch, length).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            total = block(x, layout).sum()
        total.backward()
        block.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(max(1, round(scale * WARM_UP))):
        step()
    reset_peak_memory(device)
    timed = max(3, round(scale * TIMED))
    times, clock = [], time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(timed):
        start = clock()
        step()
        times.append(1e3 * (clock() - start))
    if device.type == "cuda":
        peak = peak_memory_bytes(device)
    else:
        peak = allocated_at_most(step) + x.nbytes + sum(p.nbytes for p in parameters)
    return {"ms": min(times), "mean_ms": sum(times) / timed, "bytes": peak, "timed": timed}


def missing(out: Path, lengths: Sequence[int]) -> list[tuple[str, int]]:
    """Return kind and T of the measurements that ``out`` lacks, the shortest T first."""
    pairs = [(kind, length) for length in sorted(set(lengths)) for kind in KINDS]
    return [pair for pair in pairs if not _path(out, *pair).exists()]


def measure_into(out: Path, kind: str, length: int, scale: float, device: str) -> dict[str, Any]:
    """Measure one block in a process of its own and keep the result in ``out``.

    Raises:
        UserError: the process failed; the message has the last line of its stderr.
    """
    command = [sys.executable, "-m", "gam_scale.reproduce.blocks", kind, str(length), str(scale)]
    # torch's profiler writes to stderr, so stderr is shown only if the process fails.
    done = subprocess.run([*command, device], capture_output=True, text=True)
    if done.returncode:
        *_, reason = (f"status {done.returncode}", *done.stderr.strip().splitlines())
        raise UserError(
            f"the {kind} block of {length} tokens failed ({reason}); the same command tries it "
            "again"
        )
    made = parse_json(done.stdout.splitlines()[-1], "what the block's process printed")
    made["code_version"] = code_version()
    path = _path(out, kind, length)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, made)
    return made


def measured(out: Path) -> list[dict[str, Any]]:
    """Return all measurements in ``out``, sorted by kind and T."""
    measurements = [read_json(path) for path in (out / "blocks").glob("*.json")]
    return sorted(measurements, key=lambda block: (KINDS.index(block["kind"]), block["T"]))


def sequences(scale: float) -> int:
    """Return the number of sequences in a measurement at this scale."""
    return max(1, round(scale * BATCH))


def name(device: str) -> str:
    """Return the name of the device that a page shows."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def available() -> float:
    """Return the bytes of memory that a block may take here: 0.8 of what is available."""
    return 0.8 * psutil.virtual_memory().available


def _needs(kind: str, batch: int, length: int) -> float:
    return SCORE_TENSORS * 4.0 * batch * 8 * length**2 if kind == "transformer" else 0.0


def _path(out: Path, kind: str, length: int) -> Path:
    return out / "blocks" / f"{kind}-T{length}.json"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])))
