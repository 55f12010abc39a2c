"""Test the losses of single tokens."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gam_scale.data.packing import make_batch
from gam_scale.evaluate.token_loss import last_log_probs, token_losses
from gam_scale.model.loss import CHUNK_ELEMENTS, IGNORE


@pytest.mark.parametrize("block", ["gam", "attention", "mamba"])
@pytest.mark.parametrize("documents", ["reset", "concatenate"])
def test_they_are_cross_entropies(small_model, monkeypatch, block, documents):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 7 * 31)  # seven tokens at a time
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, 31, n) for n in (25, 25, 12)]  # the last one is padded
    rows[0][9] = 1
    batch = make_batch(rows, 24, bos_id=1, documents=documents)
    model = small_model(block, logit_softcap=1.5 if documents == "reset" else 0.0)
    losses = token_losses(model, batch)
    with torch.no_grad():
        logits = model(batch.tokens, layout=batch.layout)
        expected = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="none"
        )
        total = model(batch.tokens, batch.targets, batch.layout)
    torch.testing.assert_close(losses, expected.view(3, 24), rtol=1e-5, atol=1e-5)
    assert (losses[batch.targets == IGNORE] == 0).all()
    assert float(losses.sum()) == pytest.approx(float(total), rel=1e-5)
    last = torch.log_softmax(model(batch.tokens)[:, -1], -1)
    torch.testing.assert_close(last_log_probs(model, batch.tokens), last, rtol=1e-5, atol=1e-5)
