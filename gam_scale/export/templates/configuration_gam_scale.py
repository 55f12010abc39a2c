"""The configuration of a GAM Scale language model, in transformers."""

from typing import Any

import transformers
from transformers import PretrainedConfig

from gam_scale.model.config import ModelConfig
from gam_scale.strict import from_dict, to_dict

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(
        "GAM Scale's models need transformers 5 or later (tried: 5.23.0 and 5.24.0); this is "
        + transformers.__version__
    )

_FOLLOW = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
"""Attributes that libraries read of any model's configuration; here they follow from ``model``."""


class GAMScaleConfig(PretrainedConfig):
    """GAM Scale's own model configuration under the one key ``model``.

    Args:
        model: the ``model`` section of a GAM Scale run's config.
        vocab_size: rows of the embedding. It overrides ``model``, since
            ``resize_token_embeddings`` changes only this number. None: as in ``model``.
        training: what the weights were trained with. Its ``seq_len`` is the longest sequence that a
            model without a table of positions is known to work for.
        **kwargs: ``tie_word_embeddings``, by default as in ``model``, and what all configurations
            have.
    """

    model_type = "gam_scale"

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        training: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model = to_dict(from_dict(ModelConfig, model or {}, "model"))
        self.vocab_size = self.model["vocab_size"] if vocab_size is None else vocab_size
        self.training = training or {}
        for name in _FOLLOW:
            kwargs.pop(name, None)
        kwargs.setdefault("tie_word_embeddings", self.model["tied_head"])
        super().__init__(**kwargs)

    def model_config(self) -> ModelConfig:
        """Return the configuration that the language model is built from."""
        own = {"vocab_size": self.vocab_size, "tied_head": self.tie_word_embeddings}
        return from_dict(ModelConfig, self.model | own, "model")

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return self.model["n_layers"]

    @property
    def num_attention_heads(self) -> int:
        """Largest number of heads in any layer, of its attention or its memory."""
        return max(getattr(layer, "n_heads", 1) for layer in self.model_config().stack())

    @property
    def max_position_embeddings(self) -> int:
        """Longest sequence that the model has positions for, or else that it was trained on."""
        trained = self.training.get("seq_len")
        if self.model["position"] == "learned" or not trained:
            return self.model["max_seq_len"]
        return trained

    def to_dict(self) -> dict[str, Any]:
        """Return what is saved, and what adapter libraries read sizes from."""
        return super().to_dict() | {name: getattr(self, name) for name in _FOLLOW}
