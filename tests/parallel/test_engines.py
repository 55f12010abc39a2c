"""Every engine, world size and split into micro-batches: the same losses, norms and weights."""

import json

import pytest
from engines import BATCH, EVERYWHERE, SEQ_LEN, Trial, first_step, open_stream
from ranks import run_ranks

from gam_scale.config import TrainConfig
from gam_scale.data.stream import micro_batches

STEPS = 20
OFFLOADED = ("zero2-offload", "zero3-offload", "fsdp-offload")


def train_all(world, sets, engines, micro_batch_size, precision="fp32"):
    """Return losses, gradient norms and a checksum of the weights, by engine."""
    results = {}
    for engine in engines:
        capped = {"logit_softcap": 2.0}
        trial = Trial(world, sets, engine, micro_batch_size, precision, model=capped, z_loss=1e-3)
        first = first_step(trial.stream)
        losses, norms = zip(*(trial.step(first + s) for s in range(STEPS)), strict=True)
        results[engine] = {"losses": losses, "norms": norms, "weights": trial.weights()}
    return results


@pytest.fixture(scope="module")
def reference(prepared_set):
    """Return the results of one rank, plain engine, whole batch in one forward pass."""
    (result,) = run_ranks(
        train_all, 1, sets=str(prepared_set), engines=["torch"], micro_batch_size=BATCH
    )
    return result["torch"]


def assert_same(ours, reference, rel, engine):
    assert ours["losses"] == pytest.approx(reference["losses"], rel=rel), engine
    assert ours["norms"] == pytest.approx(reference["norms"], rel=10 * rel), engine
    assert ours["weights"] == pytest.approx(reference["weights"], rel=rel), engine


@pytest.mark.parametrize(
    ("world_size", "engines", "micro_batch_size"),
    [
        (1, EVERYWHERE, 2),
        # Ranks of 3 rows: micro-batches of 2 and 1.
        (2, (*EVERYWHERE, "fsdp-keep", *OFFLOADED), 2),
        (4, (*EVERYWHERE, "hybrid"), 1),  # ranks of 1 and of 2 rows
    ],
)
def test_same_numbers(prepared_set, reference, world_size, engines, micro_batch_size):
    results = run_ranks(
        train_all,
        world_size,
        sets=str(prepared_set),
        engines=engines,
        micro_batch_size=micro_batch_size,
    )
    for engine in engines:
        # fp32: only the order of additions differs.
        assert_same(results[0][engine], reference, rel=1e-5, engine=engine)
    assert all(json.dumps(r) == json.dumps(results[0]) for r in results), "ranks disagree"


def test_bf16_stays_near_fp32(prepared_set, reference):
    (result, _) = run_ranks(
        train_all,
        2,
        sets=str(prepared_set),
        engines=EVERYWHERE,
        micro_batch_size=BATCH,
        precision="bf16",
    )
    for engine in EVERYWHERE:
        # bf16 keeps 8 bits: 0.4% per product, averaged down in sums over a batch.
        assert result[engine]["losses"] == pytest.approx(reference["losses"], rel=5e-3), engine


def poisoned(world, sets, engines, optimizer):
    """Make rank 1's gradient of a step NaN; return what that step and the next one do.

    By engine: the step's norm, whether it left everything unchanged, the next loss and norm.
    """
    import toy_optimizers  # noqa: F401 (registers them)

    results = {}
    for engine in engines:
        trial = Trial(world, sets, engine, BATCH, optimizer=optimizer)
        trial.step(0)
        before = trial.everything()
        backward = trial.strategy.backward
        factor = float("nan") if world.rank == 1 else 1.0
        trial.strategy.backward = lambda batch, scale, last, f=factor, b=backward: b(
            batch, scale * f, last=last
        )
        _, norm = trial.step(1)
        trial.strategy.backward = backward
        unchanged = trial.everything() == before
        loss, next_norm = trial.step(2)
        results[engine] = [str(norm), unchanged, loss, next_norm]
    return results


@pytest.mark.parametrize("optimizer", ["adamw", "toys", "muon"])
def test_a_gradient_that_is_not_finite_anywhere_skips_the_step_everywhere(prepared_set, optimizer):
    sets = str(prepared_set)
    engines = EVERYWHERE if optimizer == "toys" else (*EVERYWHERE, *OFFLOADED)
    results = run_ranks(poisoned, 2, sets=sets, engines=engines, optimizer=optimizer)
    assert results[0] == results[1]
    expected = results[0]["torch"]
    for engine, (norm, unchanged, loss, next_norm) in results[0].items():
        assert norm in ("nan", "inf") and unchanged, engine
        assert [loss, next_norm] == pytest.approx(expected[2:], rel=1e-5), engine


def test_these_steps_include_the_ragged_sequence(prepared_set):
    stream = open_stream(str(prepared_set))
    config = TrainConfig(global_batch_size=BATCH, micro_batch_size=BATCH)
    first = first_step(stream)
    counts = [micro_batches(stream, first + s, config, 0, 1)[0].num_targets for s in range(STEPS)]
    assert min(counts) < BATCH * SEQ_LEN
