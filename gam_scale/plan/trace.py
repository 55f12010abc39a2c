"""Run of a block on tensors without data, which records what the block holds, computes and sends.

The block is the one that trains, wrapped as training wraps it, so that its own code accounts for
every kind of layer, way of recomputing and number of segments. Nothing is computed: torch's fake
tensors have only shapes.
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gam_scale.model.layout import Layout
from gam_scale.model.loss import linear_cross_entropy
from gam_scale.model.rotary import Rotation
from gam_scale.plan.compiled import GraphMemory, compiler
from gam_scale.plan.operators import (
    ATTENTION_FLOPS,
    EXCHANGES,
    FLOPS,
    WORKSPACE,
    Exchanged,
    Moved,
    moved,
)


class Bytes(NamedTuple):
    """Bytes of memory by what they are for."""

    activations: float = 0.0
    copies: float = 0.0  # of weights, in another precision or form
    gradients: float = 0.0  # of weights

    def plus(self, other: "Bytes") -> "Bytes":
        return Bytes(*map(sum, zip(self, other, strict=True)))

    def scaled(self, rows: float) -> "Bytes":
        """Return the bytes for ``rows`` times as many sequences."""
        return self._replace(activations=self.activations * rows)


class Work(NamedTuple):
    """What a block computes and exchanges in both passes, recomputation included."""

    flops: float = 0.0  # of matrix products and attention, by torch's counter
    scan_flops: float = 0.0  # of our own operators, which torch's counter does not know
    fp32_flops: float = 0.0  # the part of both that is on fp32 numbers
    exchanged: Exchanged = Exchanged()
    moved: Moved = Moved()

    def plus(self, other: "Work") -> "Work":
        return _combined(lambda a, b: a + b, self, other)


class BlockTrace(NamedTuple):
    """Memory and work of one forward and one backward pass of a block."""

    kept: Bytes  # from the forward to the backward pass, the block's input included
    cached: float  # weights' copies that autocast keeps until the whole forward pass is done
    peak: Bytes  # at the fullest moment of the backward pass, ``kept`` included
    work: Work  # complete only for an eager block

    def scaled(self, rows: float) -> "BlockTrace":
        """Return the trace for ``rows`` times as many sequences."""
        return BlockTrace(
            self.kept.scaled(rows),
            self.cached,
            self.peak.scaled(rows),
            _combined(lambda x: rows * x, self.work),
        )

    def extrapolated(self, shorter: "BlockTrace", times: float) -> "BlockTrace":
        """Return the trace of a longer sequence; every figure grows linearly with the segments.

        Args:
            shorter: the trace of a sequence one segment shorter than this trace's.
            times: number of segments by which the longer sequence exceeds this trace's.
        """
        return _combined(lambda a, b: a + times * (a - b), self, shorter)

    def keeping(self, more: float) -> "BlockTrace":
        """Return the trace with ``more`` bytes kept from the forward to the backward pass."""
        return self._replace(kept=self.kept.plus(Bytes(more)), peak=self.peak.plus(Bytes(more)))


def _combined(function: Callable[..., float], *tuples: Any) -> Any:
    """Apply ``function`` to the numbers at each place in nested named tuples of one kind."""
    if not isinstance(tuples[0], tuple):
        return function(*tuples)
    return type(tuples[0])(*(_combined(function, *parts) for parts in zip(*tuples, strict=True)))


class FakeContext:
    """The last of the ranks that share a sequence, as far as shapes go."""

    def __init__(self, size: int) -> None:
        self.rank, self.size = size - 1, size

    def gather(self, x: Tensor) -> Tensor:
        """See :class:`gam_scale.model.context.Context`."""
        return torch.ops.gam_scale.context_gather(x.contiguous(), 0, self.size)

    def shift(self, x: Tensor) -> Tensor:
        """See :class:`gam_scale.model.context.Context`."""
        return torch.ops.gam_scale.context_shift(x.contiguous(), 0, 1)


def trace_block(
    build: Callable[[Callable[..., Any]], nn.Module],
    shape: tuple[int, int, int],
    *,
    bf16: bool,
    documents: bool,
    context: int,
    rotation: Rotation | None,
    factor: float = 1.0,
) -> BlockTrace:
    """Run one block forward and backward, and return its trace.

    Args:
        build: makes the block, prepared as for training, given the backend for torch.compile.
        shape: (B, T, d) of the block's input, T being this rank's tokens.
        bf16: whether autocast to bf16 is on.
        documents: whether documents start within a sequence.
        context: number of ranks that share each sequence.
        rotation: rotary rotation of queries and keys; None: none.
        factor: of a compiled block's peak, see :func:`gam_scale.plan.compiled.compiler`.
    """
    layout = _layout(*shape[:2], documents, context).turned(rotation)
    torch._dynamo.reset()  # its cache of compiled code would run full after a few traces
    recorder = Recorder()
    with ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        block = build(compiler(recorder.run_graph, recorder.is_shape_of_weights, factor))
        layout = layout.map(fake.from_tensor)
        leaf = torch.zeros((), requires_grad=True)
        recorder.know(block.parameters(), [leaf], layout.tensors())
        stack.enter_context(recorder)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            x = _Source.apply(leaf, shape)
            y = block(x, layout, FakeContext(context) if context > 1 else None)
            loss = _Sink.apply(y)
            del x, y
            forward = recorder.now()
        kept = recorder.now()
        start = len(recorder.events)
        loss.backward()
    gradients = [p.grad for p in block.parameters() if p.grad is not None]
    return BlockTrace(
        recorder.total(kept, gradients),
        recorder.total(forward, gradients).copies - recorder.total(kept, gradients).copies,
        recorder.peak(kept, start, gradients),
        recorder.work,
    )


def _layout(rows: int, length: int, documents: bool, context: int) -> Layout:
    """Return the layout of the last of ``context`` ranks, with ``length`` tokens of each row.

    In attention that rank's queries see most keys, and the others wait for it.
    """
    whole = Layout.stream(rows, context * length)
    if documents:
        whole = Layout.of(whole.positions.expand(rows, -1).contiguous())
    return whole.part(context - 1, context) if context > 1 else whole


@cache
def trace_loss(
    tokens: int, vocab: int, width: int, rows: int, *, bf16: bool, softcap: float = 0.0
) -> float:
    """Return the peak bytes of the loss, with the gradients that it leaves, without its inputs.

    The loss takes ``rows`` tokens at a time; ``softcap`` bounds the logits, 0: unbounded.
    """
    recorder = Recorder()
    with FakeTensorMode():
        hidden = torch.empty(tokens, width, requires_grad=True)
        weight = torch.empty(vocab, width, requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.int64)
        recorder.know([hidden, weight, targets])
        with recorder, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = linear_cross_entropy(hidden, weight, targets, rows, softcap=softcap)
            del loss
    return sum(recorder.peak({}, 0, []))


class _Source(torch.autograd.Function):
    """Source of a block's input, which nothing but the block keeps alive."""

    @staticmethod
    def forward(ctx, leaf: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return torch.zeros(()), None


class _Sink(torch.autograd.Function):
    """Stand-in for all after a block: gives its output a gradient that nothing keeps alive."""

    @staticmethod
    def forward(ctx, y: Tensor) -> Tensor:
        ctx.like = y.shape, y.dtype
        return torch.zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return torch.empty(shape, dtype=dtype)


class Recorder(TorchDispatchMode):
    """Records when storages come and go, which of them hold weights, and operators' work.

    Attributes:
        work: the work so far.
        events: (number of a storage, bytes), negative when it goes; or :class:`Bytes` that an
            operator or a compiled graph takes only while it runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, float] | Bytes] = []
        self.work = Work()
        self._numbers: dict[int, int] = {}  # of live storages, by address
        self._live: dict[int, tuple[float, Any]] = {}  # bytes, and a reference with a callback
        self._known: set[int] = set()  # addresses that do not count: see :meth:`know`
        self._copies: set[int] = set()  # numbers of storages computed from weights alone
        self._is_on = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Return True: torch is to compile blocks as if no mode were on."""
        return True

    def know(self, weights: Iterable[Tensor], *others: Iterable[Tensor]) -> None:
        """Do not count these tensors; take what is computed from ``weights`` alone for a copy."""
        weights = list(weights)
        self._shapes = {tuple(w.shape) for w in weights}
        self._weights = {_address(w) for w in weights}
        self._known = self._weights | {_address(t) for some in others for t in some}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self._is_on:
            return out
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        done = _work(func, args, kwargs or {}, out)
        self.work = self.work.plus(done._replace(moved=moved(func, inputs, outputs)))
        weights = sum(_size(t) for t in inputs) if all(map(self.is_weight, inputs)) else 0
        for t in outputs:
            self.see(t, is_copy=_size(t) <= weights)
        if func in WORKSPACE:
            self.events.append(Bytes(WORKSPACE[func](*args)))
        return out

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether it holds weights or a copy of them; one copy per sequence is no copy."""
        address = _address(tensor)
        return address in self._weights or self._numbers.get(address) in self._copies

    def is_shape_of_weights(self, shape: torch.Size) -> bool:
        """Return whether some weights have this shape."""
        return tuple(map(int, shape)) in self._shapes

    def see(self, tensor: Tensor, *, is_copy: bool) -> None:
        """Note a tensor's storage if it is new."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known or address in self._numbers:
            return
        number = self._numbers[address] = len(self.events)
        self._live[number] = storage.nbytes(), weakref.ref(storage, partial(self._gone, address))
        if is_copy:
            self._copies.add(number)
        self.events.append((number, storage.nbytes()))

    def _gone(self, address: int, _: Any) -> None:
        number = self._numbers.pop(address)
        size, _ = self._live.pop(number)
        self.events.append((number, -size))

    def run_graph(self, graph: GraphMemory, args: list[Tensor]) -> list[Any]:
        """Stand in for a compiled graph: record its peak and return outputs without data."""
        self._is_on = False
        copies = graph.copies([isinstance(a, Tensor) and self.is_weight(a) for a in args])
        outputs = graph.outputs(args)
        self._is_on = True
        self.events.append(Bytes(graph.activations, gradients=graph.gradients))
        for out, is_copy in zip(outputs, copies, strict=True):
            if isinstance(out, Tensor):
                self.see(out, is_copy=is_copy)
        return outputs

    def now(self) -> dict[int, float]:
        """Return the live storages' numbers and bytes."""
        return {number: size for number, (size, _) in self._live.items()}

    def total(self, live: dict[int, float], gradients: list[Tensor]) -> Bytes:
        """Return the bytes of ``live`` storages by category, ``gradients`` being the weights'."""
        return self._sum(live, self._of(gradients))

    def peak(self, live: dict[int, float], start: int, gradients: list[Tensor]) -> Bytes:
        """Return the largest total since event ``start``, when the storages ``live`` existed."""
        weights = self._of(gradients)
        most = current = self._sum(live, weights)
        for event in self.events[start:]:
            if isinstance(event, Bytes):
                most = max(most, current.plus(event), key=sum)
                continue
            current = current.plus(self._sum(dict([event]), weights))
            most = max(most, current, key=sum)
        return most

    def _of(self, gradients: list[Tensor]) -> set[int]:
        return {self._numbers[_address(g)] for g in gradients if _address(g) in self._numbers}

    def _sum(self, sizes: dict[int, float], gradients: set[int]) -> Bytes:
        total = Bytes()
        for number, size in sizes.items():
            if number in gradients:
                total = total.plus(Bytes(gradients=size))
            elif number in self._copies:
                total = total.plus(Bytes(copies=size))
            else:
                total = total.plus(Bytes(size))
        return total


def _work(func: Any, args: Any, kwargs: Any, out: Any) -> Work:
    known = flop_registry.get(func._overloadpacket) or ATTENTION_FLOPS.get(func)
    counted = known(*args, **kwargs, out_val=out) if known else 0.0
    ours = FLOPS[func](*args) if func in FLOPS else 0.0
    # The first argument decides, which is multiplied: attention in bf16 keeps its sums in fp32.
    floats = (a.dtype for a in args if isinstance(a, Tensor) and a.is_floating_point())
    is_fp32 = next(floats, None) == torch.float32
    exchanged = EXCHANGES[func](*args) if func in EXCHANGES else Exchanged()
    return Work(counted, ours, is_fp32 * (counted + ours), exchanged)


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
