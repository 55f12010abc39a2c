"""Small models in their exported form, and tokens to run them on; needs transformers."""

import torch
from small import VOCAB, small

from gam_scale.export.templates.configuration_gam_scale import GAMScaleConfig
from gam_scale.export.templates.modeling_gam_scale import GAMScaleForCausalLM
from gam_scale.strict import to_dict

T = torch.randint(1, VOCAB, (2, 10), generator=torch.Generator().manual_seed(0))
LENGTH = 6  # tokens that the second row keeps when it is padded
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
FLOAT32 = 1e-5
"""Relative tolerance of logits of about 1, for sums in another order."""

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
    """Return a model with noise added to all weights, so that none is zero throughout."""
    torch.manual_seed(0)
    model = cls(config_of(*kinds, **settings)).eval()
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    return model


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """Return T with a shortened and padded second row, the mask, and that row's real places."""
    ids, mask = torch.zeros_like(T), torch.zeros_like(T)
    ids[0], mask[0] = T[0], 1
    real = slice(10 - LENGTH, None) if side == "left" else slice(None, LENGTH)
    ids[1, real], mask[1, real] = T[1, :LENGTH], 1
    return ids, mask, real
