"""Fine-tuning: the loss is the mean over the answers' tokens of all ranks and micro-batches."""

from itertools import product

import numpy as np
import pytest
import torch
from chats import prepared_chats
from engines import BATCH, SEQ_LEN, SMALL, Trial, open_stream
from ranks import run_ranks

from gam_scale.config import ModelConfig
from gam_scale.data.packing import Answers
from gam_scale.data.stream import micro_batches
from gam_scale.model.lm import build_model
from gam_scale.parallel.context import part
from gam_scale.strict import from_dict
from gam_scale.train.step import count_targets, train_step

MODEL = {
    "layers": ["gam_delta", "attention"],
    "position": "rotary",
    "memory": {"n_heads": 2},
    "attention": {"n_heads": 2},
}
STEPS = 3


def losses(world, sets, engines, micro_batch_size):
    """Return, by engine and step: loss, gradient norm, all targets, those of each micro-batch.

    The micro-batches are this rank's. At a learning rate of 0 the weights stay the same.
    """
    found = {}
    for engine in engines:
        trial = Trial(world, sets, engine, micro_batch_size, model=MODEL)
        here, found[engine] = trial.world, []
        for step in range(STEPS):
            share = here.reader, here.axes.readers
            batches = micro_batches(trial.stream, step, trial.config.train, *share)
            batches = [part(batch, here) for batch in batches]
            loss_sum, n_targets, norm = train_step(trial.strategy, batches, 0.0, max_norm=0.0)
            (total,) = here.sum(float(loss_sum))
            counts = [count_targets([batch]) for batch in batches]
            found[engine].append([total / n_targets, float(norm), n_targets, counts])
    return found


def conversations(sequence: Answers) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ids, loss mask) of each conversation alone, without padding or the next one's bos."""
    ids, carries = sequence.ids[:SEQ_LEN].astype(np.int64), sequence.carries[:SEQ_LEN]
    starts = np.flatnonzero((ids == 1) & ~carries)
    ends = [*starts[1:], len(ids)]
    parts = [(ids[a:b], carries[a:b]) for a, b in zip(starts, ends, strict=True)]
    return [(i[: 1 + np.flatnonzero(c)[-1]], c[: 1 + np.flatnonzero(c)[-1]]) for i, c in parts]


def oracle(sets):
    """Return each step's mean loss, gradient norm and targets: float64, each conversation alone."""
    model = build_model(from_dict(ModelConfig, SMALL | MODEL), seed=0).double()
    stream, found = open_stream(sets), []
    for step in range(STEPS):
        model.zero_grad()
        nats, targets = torch.zeros((), dtype=torch.float64), 0
        for sequence in stream.sequences(step * BATCH, BATCH):
            for ids, carries in conversations(sequence):
                hidden = model.hidden(torch.from_numpy(ids[None]))[0]
                log_p = torch.log_softmax(hidden @ model.head_weight.T, dim=-1)
                places = torch.from_numpy(np.flatnonzero(carries))
                nats -= log_p[places - 1, torch.from_numpy(ids)[places]].sum()
                targets += len(places)
        (nats / targets).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        found.append((float(nats.detach()) / targets, float(norm), targets))
    return found


@pytest.fixture(scope="module")
def chats(tmp_path_factory, prepared_set):
    """Prepare a set of conversations; return its path."""
    return str(prepared_chats(tmp_path_factory.mktemp("chats"), prepared_set, SEQ_LEN))


@pytest.fixture(scope="module")
def expected(chats):
    """Return what every engine must find."""
    return oracle(chats)


@pytest.mark.parametrize(
    ("world_size", "engines", "micro_batch_size"),
    [
        (1, ("torch",), 2),
        (2, ("torch", "zero3", "fsdp", "torch-context", "fsdp-context"), 1),
    ],
)
def test_every_engine_finds_the_mean_over_answers(
    chats, expected, world_size, engines, micro_batch_size
):
    results = run_ranks(
        losses, world_size, sets=chats, engines=engines, micro_batch_size=micro_batch_size
    )
    for engine in engines:
        for rank, (step, right) in product(results, enumerate(expected)):
            loss, norm, n_targets, _ = rank[engine][step]
            assert n_targets == right[2], engine
            # fp32 against float64, sums in other orders.
            assert loss == pytest.approx(right[0], rel=1e-5), engine
            assert norm == pytest.approx(right[1], rel=1e-4), engine
        counts = [rank[engine][step][3] for rank in results for step in range(STEPS)]
        assert len({n for micro in counts for n in micro}) > 3, "equal counts show nothing"
