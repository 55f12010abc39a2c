"""Test states carried between sequences: two sequences of T tokens equal one of 2 T."""

import pytest
import torch
from small import VOCAB, WHOLE, small

from gam_scale.data.packing import make_batch
from gam_scale.model.carry import Carry
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel import blocks
from gam_scale.parallel.blocks import prepare_blocks

KINDS = [kind for kind in implementations() if MIXERS[kind].by_pieces]
T, BOS = 30, 1


def make_model(kind, position):
    return build_model(small(kind, kind, position=position), 0).double()


def make_rows():
    """Return rows with documents that start inside, at token T, at token T + 1, and nowhere."""
    rows = torch.randint(2, VOCAB, (4, 2 * T + 1), generator=torch.Generator().manual_seed(0))
    rows[0, [7, 41]] = rows[1, T] = rows[2, T + 1] = BOS
    return rows.numpy()


@pytest.mark.parametrize("documents", ["reset", "concatenate"])
@pytest.mark.parametrize("position", ["none", "rotary"])
@pytest.mark.parametrize("kind", [*KINDS, pytest.param(WHOLE, id="whole")])
def test_two_sequences_are_one_of_twice_the_length(monkeypatch, kind, position, documents):
    rows = make_rows()
    whole = make_batch(list(rows), 2 * T, BOS, documents)
    model = make_model(kind, position)
    expected = model(whole.tokens, whole.targets, whole.layout).item()
    for segment in (None, 1 << 20, 8):  # bare blocks; blocks as they run, whole and cut
        model = make_model(kind, position)
        if segment:
            monkeypatch.setitem(blocks.SEGMENT, "cpu", segment)
            prepare_blocks(model, "full", compiled=False)
        carry, losses = Carry([3, 1]), []
        for first in (0, T):
            for carried, some in zip(carry.parts, (rows[:3], rows[3:]), strict=True):
                cut = list(some[:, first : first + T + 1])
                batch = make_batch(cut, T, BOS, documents, goes_on=True)
                losses.append(model(*batch._replace(carried=carried)))
                losses[-1].backward()
        # float64; only the order of additions differs.
        assert sum(loss.item() for loss in losses) == pytest.approx(expected, rel=1e-12)
        assert not any(state.requires_grad for state in carry.state_dict().values())


def test_states_matter_and_are_forgotten_when_told_or_not_given():
    rows = list(make_rows()[:, : T + 1])
    batch = make_batch(rows, T, BOS, "reset", goes_on=True)
    model, carry = make_model("delta", "none"), Carry([4])

    def loss():
        return model(*batch._replace(carried=carry.parts[0])).item()

    first, second = loss(), loss()
    assert abs(first - second) > 1e-6
    kept = carry.state_dict()
    assert model(*batch).item() == pytest.approx(first, rel=1e-12)
    assert all(torch.equal(kept[key], value) for key, value in carry.state_dict().items())
    carry.clear()
    assert loss() == first
    carry.load_state_dict(kept)
    third = loss()
    carry.load_state_dict(kept)
    assert loss() == third != second
