"""Micro-batches reach a GPU ahead of their use, in the right order of streams and events."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from gam_scale.data.packing import make_batch, plain_batch
from gam_scale.data.transfer import Transfer
from gam_scale.model.rotary import Rotation


def test_on_a_cpu_batches_stay_where_they_are():
    batches = [plain_batch(torch.zeros(1, 2), torch.zeros(1, 2)) for _ in range(3)]
    transfer = Transfer(torch.device("cpu"))
    assert [transfer.prepare(batch) for batch in batches] == batches
    assert all(a is b for a, b in zip(transfer(batches), batches, strict=True))


class GPU:
    """Stands in for torch.cuda, as there is no GPU here, and logs its calls in order."""

    def __init__(self, monkeypatch):
        self.log, self.stream = [], "computing"
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "copying"))
        monkeypatch.setattr(torch.cuda, "stream", self.use)
        monkeypatch.setattr(torch.cuda, "device", self.on)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, self.stream))

    @contextmanager
    def use(self, stream):
        before, self.stream = self.stream, stream.name
        yield
        self.stream = before

    @contextmanager
    def on(self, device):
        self.log.append(f"on {device}")
        yield


class Stream:
    def __init__(self, gpu, name):
        self.gpu, self.name = gpu, name

    def record_event(self):
        self.gpu.log.append(f"event on {self.name}")
        return f"event {sum(each.startswith('event on') for each in self.gpu.log)}"

    def wait_event(self, event):
        self.gpu.log.append(f"{self.name} waits for {event}")


class Sent:
    """Stands in for a batch, and logs with the GPU where it is copied, pinned and held."""

    def __init__(self, gpu, number):
        self.gpu, self.number = gpu, number

    def to(self, device):
        self.gpu.log.append(f"{self.number} to {device} on {self.gpu.stream}")
        return self

    def pin(self):
        self.gpu.log.append(f"{self.number} pinned")
        return self

    def record_stream(self, stream):
        self.gpu.log.append(f"{self.number} held for {stream.name}")


@pytest.mark.parametrize("count", [1, 3])
def test_the_next_batch_is_sent_before_this_one_is_computed(monkeypatch, count):
    gpu = GPU(monkeypatch)
    transfer = Transfer(torch.device("cuda:1"))
    batches = [transfer.prepare(Sent(gpu, i)) for i in range(1, count + 1)]
    assert gpu.log == [x for i in range(1, count + 1) for x in ("on cuda:1", f"{i} pinned")]
    gpu.log.clear()
    for batch in transfer(batches):
        gpu.log.append(f"compute {batch.number} on {gpu.stream}")
    sent = [[f"{i} to cuda:1 on copying", "event on copying"] for i in range(1, count + 1)]
    wanted = sent[0]
    for i in range(1, count + 1):
        wanted += sent[i] if i < count else []
        wanted += [f"computing waits for event {i}", f"{i} held for computing"]
        wanted += [f"compute {i} on computing"]
    assert gpu.log == wanted


@pytest.mark.parametrize("documents", ["reset", "concatenate"])
def test_all_of_a_batch_is_pinned_and_held(monkeypatch, documents):
    """An unpinned tensor is copied with a wait; one not held may be overwritten while in use."""
    pinned, held = [], []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(id(x)) or x)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: held.append(id(x)))
    batch = make_batch([np.arange(9), np.arange(5)], 8, 3, documents)
    batch = batch.turned(Rotation(10_000.0, (4,)))
    batch.pin()
    batch.record_stream(None)
    layout = batch.layout
    wanted = [batch.tokens, batch.targets, layout.positions, *layout.stretches, *layout.spans]
    wanted += [x for x in (layout.documents, layout.starts) if x is not None]
    wanted += [x for pair in layout.turns.values() for x in pair]
    assert layout.turns and set(pinned) == set(held) == set(map(id, wanted))
