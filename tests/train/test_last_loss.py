"""The newest loss that the host can read without waiting for the device."""

import math

import pytest
import torch

from gam_scale.train.last_loss import LastLosses


class Event:
    """Stands in for ``torch.cuda.Event`` on a CPU, and notes which events are waited for."""

    waited: list[int]

    def __init__(self) -> None:
        self.number = 0

    def record(self) -> None:
        Event.recorded += 1
        self.number = Event.recorded

    def synchronize(self) -> None:
        Event.waited.append(self.number)


@pytest.fixture
def waited(monkeypatch):
    """Return the list of copies, numbered from 1, that the host has waited for."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    Event.recorded, Event.waited = 0, []
    return Event.waited


def test_a_cpu_gives_the_last_steps():
    losses = LastLosses(torch.device("cpu"))
    assert math.isnan(losses.take().value)
    for step in (5, 6, 7):
        losses.put(step, torch.tensor(step / 2))
        assert losses.take() == (step, step / 2)
    assert losses.take_all() == []


def test_a_gpu_gives_the_one_before_and_waits_for_no_other(waited):
    losses = LastLosses(torch.device("cuda"))
    for step in (5, 6, 7):
        assert math.isnan(losses.take().value) == (step < 7)
        losses.put(step, torch.tensor(step / 2, dtype=torch.float64))
    assert losses.take() == (6, 3.0)
    assert waited == [1, 2]
    losses.put(8, torch.tensor(4.0, dtype=torch.float64))
    assert losses.take_all() == [(7, 3.5), (8, 4.0)]
    assert waited == [1, 2, 3, 4]
    losses.put(9, torch.tensor(4.5, dtype=torch.float64))
    assert math.isnan(losses.take().value)
