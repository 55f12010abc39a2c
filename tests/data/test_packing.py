"""Sequences, targets and positions against plain loops."""

import numpy as np
import pytest
import torch

from gam_scale.data.documents import PADDING
from gam_scale.data.packing import IGNORE, make_batch, num_sequences

BOS = 1


def cut(stream: np.ndarray, seq_len: int) -> list[np.ndarray]:
    """Cut a stream into sequences, straight from their definition."""
    count = num_sequences(len(stream), seq_len)
    return [stream[i * seq_len : (i + 1) * seq_len + 1] for i in range(count)]


def positions_by_loop(tokens: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(tokens)
    for row in range(tokens.shape[0]):
        for t in range(1, tokens.shape[1]):
            out[row, t] = 0 if tokens[row, t] == BOS else out[row, t - 1] + 1
    return out


@pytest.mark.parametrize(
    ("tokens", "seq_len", "count"),
    [(0, 4, 0), (1, 4, 0), (2, 4, 1), (5, 4, 1), (6, 4, 2), (9, 4, 2), (10, 4, 3), (3, 1, 2)],
)
def test_num_sequences(tokens: int, seq_len: int, count: int) -> None:
    assert num_sequences(tokens, seq_len) == count


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 16, 17, 18, 100])
@pytest.mark.parametrize("seq_len", [1, 2, 8])
def test_every_token_but_the_first_is_a_target_once(length: int, seq_len: int) -> None:
    stream = np.arange(2, 2 + length).astype(np.uint16)
    batch = make_batch(cut(stream, seq_len), seq_len, BOS, "reset")
    predicted = batch.targets != IGNORE
    assert batch.targets[predicted].tolist() == stream[1:].tolist()
    assert batch.tokens[predicted].tolist() == stream[:-1].tolist()
    assert (batch.tokens[~predicted] == PADDING).all()
    assert batch.num_targets == length - 1
    assert (batch.targets != IGNORE).any(dim=1).all(), "a sequence without a target"


def test_shapes_and_types() -> None:
    ids = np.arange(2, 11).astype(np.uint16)
    batch = make_batch([ids, ids[:4]], 8, BOS, "reset")
    for tensor in (batch.tokens, batch.targets, batch.layout.positions):
        assert tensor.shape == (2, 8) and tensor.dtype == torch.int64
    assert make_batch([ids], 8, BOS, "concatenate").layout.documents is None


def test_large_ids_survive() -> None:
    ids = np.array([2**32 - 1, 65_536, 70_000], np.uint32)
    batch = make_batch([ids], 2, BOS, "reset")
    assert batch.tokens.tolist() == [[2**32 - 1, 65_536]]
    assert batch.targets.tolist() == [[65_536, 70_000]]


@pytest.mark.parametrize("ids", [[], [7]])
def test_a_row_without_targets(ids: list[int]) -> None:
    batch = make_batch([np.array(ids, np.uint16)], 3, BOS, "reset")
    assert batch.tokens.tolist() == [[PADDING] * 3]
    assert batch.targets.tolist() == [[IGNORE] * 3]
    assert batch.layout.positions.tolist() == [[0, 1, 2]]
    assert batch.num_targets == 0


@pytest.mark.parametrize(
    ("ids", "positions"),
    [
        ([BOS, 5, 6, 7, 8], [0, 1, 2, 3]),  # at the start, where positions are 0 anyway
        ([5, 6, 7, BOS, 8], [0, 1, 2, 0]),  # the last input
        ([5, 6, 7, 8, BOS], [0, 1, 2, 3]),  # the last target: no input of this sequence
        ([BOS, BOS, BOS, BOS, BOS], [0, 0, 0, 0]),  # empty documents
        ([5, BOS, 6, BOS, 7], [0, 0, 1, 0]),
        ([5, BOS, 6], [0, 0, 1, 2]),  # ragged: positions go on over padding
    ],
)
def test_positions_restart_at_documents(ids: list[int], positions: list[int]) -> None:
    batch = make_batch([np.array(ids, np.uint16)], 4, BOS, "reset")
    assert batch.layout.positions.tolist() == [positions]


def test_bos_is_a_target() -> None:
    batch = make_batch([np.array([5, BOS, 6], np.uint16)], 2, BOS, "reset")
    assert batch.targets.tolist() == [[BOS, 6]]


@pytest.mark.parametrize("share_of_bos", [0.0, 0.05, 0.5])
def test_positions_equal_the_loop(share_of_bos: float) -> None:
    rng = np.random.default_rng(0)
    ids = np.where(rng.random((6, 34)) < share_of_bos, BOS, rng.integers(2, 50, (6, 34)))
    batch = make_batch(list(ids), 33, BOS, "reset")
    assert torch.equal(batch.layout.positions, positions_by_loop(batch.tokens))


def test_to_moves_every_tensor() -> None:
    for documents in ("reset", "concatenate"):
        batch = make_batch([np.arange(5)], 4, BOS, documents).to("meta")
        assert batch.tokens.is_meta and batch.targets.is_meta and batch.layout.positions.is_meta


def test_rows_that_go_on_count_from_one_up_to_a_document() -> None:
    ids = [np.array(row, np.uint16) for row in ([5, 6, BOS, 7, 8], [BOS, 5, 6, 7, 8])]
    batch = make_batch(ids, 4, BOS, "reset", goes_on=True)
    assert batch.layout.positions.tolist() == [[1, 2, 0, 1], [0, 1, 2, 3]]
    batch = make_batch(ids, 4, BOS, "concatenate", goes_on=True)
    assert batch.layout.positions.tolist() == [[1, 2, 3, 4]]


def test_padding_opens_no_document_where_its_id_would():
    (zero, one) = (make_batch([np.array([bos, 5, 6])], 6, bos, "reset") for bos in (0, 1))
    assert zero.layout.positions.tolist() == one.layout.positions.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert 0 not in zero.tokens[0, 1:].tolist()
