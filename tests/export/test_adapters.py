"""Test adapters such as LoRA on exported models.

An adapter wraps a module's call. If the model used the module's weight without calling it, training
would bypass the adapter there, but merging would not: the merged model would differ.
"""

import pytest
import torch
from closeness import is_alive, off
from torch import Tensor, nn

from gam_scale.config import AttentionConfig, MambaConfig, MemoryConfig, ModelConfig
from gam_scale.model.lm import build_model
from gam_scale.model.parts import implementations

KINDS = implementations()
TOKENS = torch.randint(31, (2, 12), generator=torch.Generator().manual_seed(0))


class LoRA(nn.Module):
    """An adapter like peft's: it replaces a linear layer and adds to what that layer returns."""

    def __init__(self, base: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        shapes = (2, base.in_features), (base.out_features, 2)
        self.A, self.B = (nn.Parameter(0.3 * torch.randn(s, generator=generator)) for s in shapes)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.A.dtype)
        return self.base_layer(x) + x @ self.A.T @ self.B.T

    def merge(self) -> None:
        self.base_layer.weight.data += self.B.data @ self.A.data


def model_config(kind: str) -> ModelConfig:
    return ModelConfig(
        layers=[kind],
        d_model=16,
        n_layers=2,
        vocab_size=31,
        max_seq_len=12,
        dropout=0.0,
        memory=MemoryConfig(n_heads=2, n_slots=6, top_k=6),
        attention=AttentionConfig(n_heads=2),
        mamba=MambaConfig(d_state=4, expand=2),
    )


def adapted(model: nn.Module) -> dict[str, LoRA]:
    """Replace every linear layer by an adapter around it; return the adapters by name."""
    generator, found = torch.Generator().manual_seed(1), {}
    for prefix, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                found[f"{prefix}.{name}"] = LoRA(child, generator)
                setattr(module, name, found[f"{prefix}.{name}"])
    return found


def outputs(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return all logits in the training form, and the last ones computed through a state."""
    state = model.init_state(2)
    _, state = model.extend(TOKENS[:, :7], state)
    return model(TOKENS), model.extend(TOKENS[:, 7:], state)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_on_any_linear_layer_is_trained_and_merges_into_what_was_trained(kind):
    model = build_model(model_config(kind), seed=0)
    adapters = adapted(model)
    model.double()
    trained = outputs(model)
    trained[0].square().sum().backward()
    for name, adapter in adapters.items():
        assert is_alive(adapter.A.grad) and is_alive(adapter.B.grad), f"{name} does not learn"
    assert off(trained[1], trained[0][:, -1]) < 1e-9
    merged = build_model(model_config(kind), seed=0).double()
    before = outputs(merged)
    for adapter in adapters.values():
        adapter.merge()
    merged.load_state_dict(
        {
            name.replace("base_layer.", ""): p
            for name, p in model.state_dict().items()
            if not name.endswith((".A", ".B"))
        }
    )
    for was, now, old in zip(trained, outputs(merged), before, strict=True):
        assert off(now, was) < 1e-9, "merged is not what was trained"
        assert off(now, old) > 0.1  # the adapters do something
