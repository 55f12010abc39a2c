"""Test PEFT on exported models: adapters that are trained, merged, saved; prompts; prefixes."""

import copy

import pytest
import torch
from closeness import is_alive, off
from small import BY_CHANNEL, WHOLE

from gam_scale.model.parts import implementations

peft = pytest.importorskip("peft", reason="peft is missing; the extra hf has it")

from exported import ATTENTION, FLOAT32, GREEDY, T, model_of  # noqa: E402

MODELS = {kind: (kind, kind) for kind in implementations()} | {
    "delta of heads, with all of the recipe": (WHOLE, WHOLE),
    "delta by channel": (BY_CHANNEL, BY_CHANNEL),
    "gam_delta": ("gam_delta", "gam_delta"),
    "hybrid": ("gam_delta", "gam_delta", "gam_delta", ATTENTION),
}
LORA = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 2}


def trained(model, steps=4):
    """Train; return the model, the loss of every step, and the last step's gradients."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-2)
    losses = []
    for _ in range(steps):
        loss = model(T, attention_mask=torch.ones_like(T), labels=T).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        optimizer.zero_grad(set_to_none=True)
    return model.eval(), losses, grads


@pytest.mark.parametrize("name", MODELS)
def test_adapters_learn_merge_and_come_back(name, tmp_path):
    base = model_of(*MODELS[name], tied_head=name != "hybrid")
    adapted, losses, grads = trained(
        peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**LORA))
    )
    assert losses[-1] < losses[0] - 0.1
    linear = [n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)]
    linear.remove("lm_head")  # which PEFT's "all-linear" leaves alone
    assert len(grads) == 2 * len(linear)
    for key, grad in grads.items():
        assert is_alive(grad), f"{key} does not learn"
    with torch.no_grad():
        found = adapted(T).logits
        cache = adapted(T[:, :6], use_cache=True).past_key_values
        assert off(adapted(T[:, 6:], past_key_values=cache).logits, found[:, 6:]) < FLOAT32
        adapted.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
        assert torch.equal(again(T).logits, found)
        assert off(adapted.merge_and_unload()(T).logits, found) < FLOAT32
        assert off(base(T).logits, found) > 0.1  # the adapters do something


@pytest.mark.parametrize("name", ["gam_delta", "hybrid"])
def test_a_prompt_is_tuned_and_stands_before_what_is_generated(name):
    base = model_of(*MODELS[name], position="learned")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    tuned, losses, grads = trained(peft.get_peft_model(base, config), 10)
    assert losses[-1] < losses[0] - 0.1 and len(grads) == 1
    ids = T
    with torch.no_grad():  # each token from the whole text, without a cache
        for _ in range(GREEDY["max_new_tokens"]):
            logits = tuned(ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    call = {"input_ids": T, "attention_mask": torch.ones_like(T)} | GREEDY
    assert torch.equal(tuned.generate(**call), ids)
    assert torch.equal(tuned.generate(use_cache=False, **call), ids)


def test_a_prefix_of_keys_and_values_is_refused():
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    prefixed = peft.get_peft_model(model_of("gam_delta", "gam_delta"), config)
    with pytest.raises(ValueError, match="is a DynamicCache, which has no place for what these"):
        prefixed(T, labels=T)
