"""Loss spikes: where a run goes back to, what it leaves out, and when it gives up."""

import json
from contextlib import ExitStack
from itertools import pairwise

import pytest
from whole_runs import Setting, hooked, killed_after, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.errors import UserError
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.train.hooks.spikes import Spikes
from gam_scale.train.last_loss import LastLosses
from gam_scale.train.loop import Hook

SPIKES = {"spike_ratio": 2.0}
NO_EVAL = {"every_steps": 0}  # which would save the best states, too


@pytest.fixture
def spiking(monkeypatch):
    """``spiking(where)`` makes steps spike whose number and batch ``where`` accepts.

    It returns a list to which the run adds the numbers and batches of its steps.
    """
    with ExitStack() as stack:

        def make(where):
            trained, backward = [], PlainStrategy.backward

            class Trained(Hook):
                def before_step(self, loop, batches):
                    trained.append((loop.state.step + 1, loop.state.step + loop.state.left_out))
                    return batches

            def spiked(self, batch, scale, *, last):
                return backward(self, batch, scale, last=last) * (9 if where(*trained[-1]) else 1)

            monkeypatch.setattr(PlainStrategy, "backward", spiked)
            stack.enter_context(hooked(Trained(), Setting(Spikes, window=4)))
            return trained

        yield make


@pytest.fixture(params=[False, True], ids=["at once", "a step late"])
def late(request, monkeypatch):
    """Have losses come as on a CPU and as on a GPU."""
    init = LastLosses.__init__

    def lagging(self, device):
        init(self, device)
        self._lag = int(request.param)

    monkeypatch.setattr(LastLosses, "__init__", lagging)


@pytest.mark.parametrize(
    ("batch", "back_to"),
    [(8, 6), (10, 6), (11, 6), (12, 12), (19, 18)],
    ids=["between saves", "just before one", "at one", "just after one", "at the end"],
)
def test_a_spike_goes_back_and_leaves_its_data_out(tmp_path, tiny, spiking, late, batch, back_to):
    trained = spiking(lambda step, its_batch: its_batch == batch)
    run = tmp_path / "run"
    train(tiny(run, train=SPIKES, eval=NO_EVAL))
    state = json.loads((run / "checkpoints" / "step-00000020" / "state.json").read_text())
    assert state["step"] == trained[-1][0] == 20
    seen = trained.index((back_to + 1, back_to + state["left_out"]))  # the first step after it
    assert trained[seen - 1][0] - back_to == state["left_out"] >= batch + 1 - back_to
    assert [its_batch for _, its_batch in trained].count(batch) == 1
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted({line["step"] for line in lines})
    assert max(line["loss"] for line in lines) < 7


def test_what_spikes_whatever_it_reads_goes_further_back_and_ends(tmp_path, tiny, spiking):
    trained = spiking(lambda step, batch: step in (14, 15))
    run = tmp_path / "run"
    with pytest.raises(UserError, match="spikes near step 14 whatever text is left out: 3 roll"):
        train(tiny(run, train=SPIKES, eval=NO_EVAL))
    again = [step for (before, _), (step, _) in pairwise(trained) if step <= before]
    assert again == [13, 7, 7]
    assert CheckpointStore(run / "checkpoints").steps() == [6, 12]
    aside = sorted(path.name for path in (run / "checkpoints").glob("spiked-*"))
    assert "spikes near step" in (run / "diverged.json").read_text()
    assert aside == ["spiked-step-00000012", "spiked-step-00000012.2"]


def test_a_resumed_run_knows_the_losses_before(tmp_path, tiny, spiking):
    config = tiny(tmp_path / "run", train=SPIKES, checkpoint={"background": False})
    with killed_after(7):
        train(config)
    trained = spiking(lambda step, batch: batch == 6)
    train(config)
    assert trained[:2] == [(7, 6), (7, 7)]


def test_another_stages_losses_are_no_spike(tmp_path, tiny, spiking):
    trained = spiking(lambda step, batch: batch >= 10)
    stages = [{"steps": 10}, {"steps": 10, "seq_len": 24}]
    train(tiny(tmp_path / "run", train=SPIKES | {"stages": stages}))
    assert len(trained) == 20
