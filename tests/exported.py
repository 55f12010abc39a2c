"""Models as they are exported, small, and texts for them; needs transformers."""

import torch
from small import VOCAB, small

from gam_scale.export.templates.configuration_gam_scale import GAMScaleConfig
from gam_scale.export.templates.modeling_gam_scale import GAMScaleForCausalLM
from gam_scale.strict import to_dict

T = torch.randint(1, VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
LENGTH = 6  # of the second row's text where it is padded
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
FLOAT32 = 1e-5
"""Sums in another order: relative, of logits of the size of 1."""

ATTENTION = {"kind": "attention", "n_heads": 2, "n_kv_heads": 1, "qk_norm": True, "window": 5}
MODELS = {
    "gam_delta": {"kinds": ("gam_delta", "gam_delta"), "position": "learned"},
    "hybrid": {
        "kinds": ("gam_delta", ATTENTION),
        "position": "rotary",
        "tied_head": False,
        "logit_softcap": 3.0,
    },
}


def config_of(*kinds, **settings) -> GAMScaleConfig:
    model = to_dict(small(*kinds, **{"max_seq_len": 32} | settings))
    return GAMScaleConfig(model=model, pad_token_id=0, bos_token_id=0)


def model_of(*kinds, cls=GAMScaleForCausalLM, **settings):
    """A model whose weights are far from zero everywhere."""
    torch.manual_seed(0)
    model = cls(config_of(*kinds, **settings)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    return model


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """The second row as its first tokens alone, a mask, and where they stand."""
    ids, mask = torch.zeros_like(T), torch.zeros_like(T)
    ids[0], mask[0] = T[0], 1
    real = slice(10 - LENGTH, None) if side == "left" else slice(None, LENGTH)
    ids[1, real], mask[1, real] = T[1, :LENGTH], 1
    return ids, mask, real
