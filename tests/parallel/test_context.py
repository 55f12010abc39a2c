"""Sequences cut over ranks give the losses and gradients of whole ones; bytes sent are counted."""

import needs
import pytest
import torch
from closeness import worst
from engines import BATCH, Trial, differences
from ranks import run_ranks
from small import WHOLE

from benchmarks.messages import recorded
from gam_scale.config import (
    AttentionConfig,
    GAMConfig,
    MambaConfig,
    MemoryConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
)
from gam_scale.data.packing import Batch
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.model.parts import MIXERS, implementations
from gam_scale.parallel import context as exchange
from gam_scale.parallel.context import SequenceContext, part
from gam_scale.strict import from_dict
from gam_scale.train.pretrain import pretrain

KINDS = [*implementations(), WHOLE]
LENGTH = 264
# 2 ranks cut at 132, 4 ranks at every 66: documents start at cuts, beside them, and span them.
DOCUMENTS = [[0, 65, 67, 132, 250], [0, 66, 133, 198, 263], [0]]


def make_batch(length: int, *, documents: bool) -> Batch:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(23, (3, length + 1), generator=generator)
    layout = Layout.stream(3, length)
    if documents:
        index = torch.arange(length)
        starts = [max(s for s in row if s <= t) for row in DOCUMENTS for t in range(length)]
        layout = Layout.of(index - torch.tensor(starts).view(3, length))
    return Batch(tokens[:, :-1], tokens[:, 1:], layout)


def make_model(kind: str | dict, position: str) -> torch.nn.Module:
    config = ModelConfig(
        layers=[MIXERS.read(kind, "layers")],
        d_model=16,
        n_layers=2,
        vocab_size=23,
        max_seq_len=LENGTH,
        dropout=0.0,
        position=position,
        gam=GAMConfig(n_slots=6),
        memory=MemoryConfig(n_heads=2, n_slots=6, top_k=2),
        attention=AttentionConfig(n_heads=2),
        mamba=MambaConfig(d_state=4, expand=2),
    )
    return build_model(config, seed=0)


def largest_difference(world, kinds, compiled=False, dtype="float32"):
    """Return the largest relative difference of loss and gradients from one rank's, by kind."""
    world = world.arranged(ParallelConfig(context=world.world_size))
    context, found = SequenceContext(world), {}
    for kind in kinds:
        for documents, position in ((True, "rotary"), (False, "learned")):
            batch = make_batch(LENGTH, documents=documents)
            whole, cut = (make_model(kind, position).to(getattr(torch, dtype)) for _ in range(2))
            cut.context = context
            if compiled:
                for block in cut.blocks:
                    block.forward = torch.compile(block.forward, dynamic=False, fullgraph=True)
            found[f"{kind}, documents {documents}"] = worst(differences(cut, whole, batch, world))
    return found


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_cut_sequence_has_the_losses_and_gradients_of_a_whole_one(world_size):
    results = run_ranks(largest_difference, world_size, kinds=KINDS)
    for what, difference in results[0].items():
        limit = next((limit for kind, limit in ILL if what.startswith(str(kind))), 1e-5)
        assert difference < limit, f"{what}: {difference:.1e}"  # fp32: sums in another order


ILL = ((WHOLE, 3e-5), ("mamba2", 5e-5))
"""Kinds whose gradients float32 represents less exactly, cut or whole, with their limits.

Published decays forget much of a chunk in a few tokens: sums of their logarithms reach -100, where
float32 has steps of 7.6e-6, and the decay between two tokens is a difference of such sums. With one
head in a group, as ``mamba2`` has here, D is a single number, of whose gradient the norm that
follows leaves little (tests/model/test_first_tokens.py).
"""


def test_what_float32_knows_less_well_is_cut_exactly():
    results = run_ranks(largest_difference, 2, kinds=[kind for kind, _ in ILL], dtype="float64")
    for what, difference in results[0].items():
        assert difference < 1e-12, f"{what}: {difference:.1e}"


@needs.compiler
def test_a_compiled_block_is_one_graph_with_its_exchanges_in_it():
    results = run_ranks(largest_difference, 2, kinds=["delta"], compiled=True)
    assert worst(results[0].values()) < 1e-5  # fp32, as above


def bytes_per_length(world, kinds):
    """Return by kind the bytes that this rank sends for both passes over 64 and 128 tokens."""
    world, sent = world.arranged(ParallelConfig(context=world.world_size)), {}
    for kind in kinds:
        for length in (64, 128):
            model, batch = make_model(kind, "none"), make_batch(length, documents=False)
            model.context = context = SequenceContext(world)
            here = part(batch, world)
            with recorded(context.size) as messages:
                model(here.tokens, here.targets).backward()
            assert sum(messages) == context.bytes_sent, "counted otherwise than sent"
            sent.setdefault(str(kind), []).append(context.bytes_sent)
    return sent


def test_memories_send_as_much_for_any_length():
    for sent in run_ranks(bytes_per_length, 2, kinds=KINDS):
        short, long = sent.pop("attention")
        assert long == 2 * short
        for kind, (short, long) in sent.items():
            assert short == long > 0, kind


ENGINES = ["torch-context", "zero1-context", "zero3-context", "fsdp-context"]
MODEL = {"layers": ["delta", "slot", "attention"], "n_layers": 3, "memory": {"n_heads": 2}}


def train(world, sets, engines):
    """Return, by engine, losses and gradient norms of six steps."""
    results = {}
    for engine in engines:
        trial = Trial(world, sets, engine, BATCH, model=MODEL)
        results[engine] = [trial.step(number) for number in range(6)]
    return results


def test_composes_with_data_parallelism_and_every_engine(prepared_set):
    """Four ranks: two sequences side by side, each cut in two."""
    ((reference),) = run_ranks(train, 1, sets=str(prepared_set), engines=["torch"])
    results = run_ranks(train, 4, sets=str(prepared_set), engines=ENGINES)
    expected = torch.tensor(reference["torch"])
    for engine in ENGINES:
        found = torch.tensor(results[0][engine])
        torch.testing.assert_close(found[:, 0], expected[:, 0], rtol=1e-5, atol=0, msg=engine)
        torch.testing.assert_close(found[:, 1], expected[:, 1], rtol=1e-4, atol=0, msg=engine)


def run_pretrain(world, config):
    """Train a whole run, with evaluations and checkpoints."""
    pretrain(from_dict(RunConfig, config), fresh=False)


def test_a_whole_run_over_two_ranks_is_that_of_one(tmp_path, tiny, curve):
    model = {"position": "rotary", "memory": {"kind": "slot", "n_heads": 2}, "dropout": 0.0}
    for name, context in (("one", 1), ("two", 2)):
        config = tiny(tmp_path / name, model=model, parallel={"context": context})
        run_ranks(run_pretrain, context, config=config)
    for one, two in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert [two[k] is None for k in two] == [one[k] is None for k in one]
        found, expected = ({k: v for k, v in x.items() if v is not None} for x in (two, one))
        assert found == pytest.approx(expected, rel=1e-4), one["step"]  # 20 steps of fp32 apart


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("all_gather_single", "all_gather_into_tensor"),
        ("reduce_scatter_single", "reduce_scatter_tensor"),
    ],
)
def test_collectives_have_other_names_in_torch_2_11(monkeypatch, name, former):
    monkeypatch.delattr(exchange.dist, name, raising=False)
    assert exchange._collective(name, former) is getattr(exchange.dist, former)
