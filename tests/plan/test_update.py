"""Test what Muon adds to a plan: FLOPs against torch's counter, all else by hand."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.config import RunConfig
from gam_scale.parallel.muon import MUON, orthogonal
from gam_scale.plan.communication import Collective, collectives
from gam_scale.plan.estimate import Estimate
from gam_scale.plan.gpus import find_gpu
from gam_scale.plan.job import Job
from gam_scale.plan.memory import kept_bytes
from gam_scale.strict import from_dict

H100 = find_gpu("h100")
WIDTH, LAYERS = 64, 3
MATRICES = LAYERS * (WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH)  # elements: the bank, up and down


def job_of(optimizer, engine, ranks):
    model = {"layers": ["static"], "gam": {"n_slots": WIDTH}}
    shape = {"d_model": WIDTH, "n_layers": LAYERS, "vocab_size": 100}
    values = {"model": model | shape, "data": {"sets": [{"path": "none"}], "seq_len": 32}}
    train = {"steps": 9, "global_batch_size": 8, "optimizer": optimizer, "precision": "bf16"}
    config = from_dict(RunConfig, values | {"train": train, "parallel": {"engine": "torch"}})
    return Job.of(config, 1, ranks).running(engine)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_flops_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonal(torch.randn(shape), torch.float32)
    assert MUON.flops(shape, ()) == counter.get_total_flops() > 0
    twice = MUON.flops((2 * shape[0], shape[1]), (shape[0], shape[0]))
    assert twice == 2 * MUON.flops(shape, ())


def test_all_to_all_sends_what_is_another_ranks():
    assert Collective("all_to_all", "matrices", 160, 4).sent == 30


@pytest.mark.parametrize("engine", ["torch", "zero0", "zero1", "zero2", "zero3", "fsdp"])
def test_matrices_keep_one_number_for_two_and_are_multiplied_by_their_owners(engine):
    adamw, muon = (job_of(name, engine, 3) for name in ("adamw", "muon"))
    share = 1 if engine in ("torch", "zero0") else 3
    # Three equal layers on three ranks: each rank owns one of each matrix.
    assert kept_bytes(adamw) - kept_bytes(muon) == pytest.approx(4 * MATRICES / share, rel=0.05)
    of_layer = 5 * (6 + 2 * (4 * 4 + 2)) * WIDTH**3
    assert muon.update.flops == of_layer * LAYERS / share and not adamw.update.flops
    sent = sum(c.sent for c in collectives(muon)) - sum(c.sent for c in collectives(adamw))
    assert sent == (0 if share == 1 else pytest.approx(2 * 4 * MATRICES * 2 / 9))
    one, other = (Estimate("", job, H100, 0.5).computing for job in (adamw, muon))
    more = muon.update.flops / 989.4e12 / 0.5
    assert other.products - one.products == pytest.approx(more, rel=1e-6)
    assert other.memory < one.memory
