"""The configuration of a GAM Scale language model, as Hugging Face reads it."""

from typing import Any

from transformers import PretrainedConfig

from gam_scale.model.config import ModelConfig
from gam_scale.strict import from_dict, to_dict


class GAMScaleConfig(PretrainedConfig):
    """GAM Scale's own model configuration under the one key ``model``.

    Args:
        model: what GAM Scale calls the ``model`` section of a run's config.
        vocab_size: rows of the embedding; counts where ``model`` says otherwise, which is what
            ``resize_token_embeddings`` changes.
        training: what the weights were trained with; nothing here depends on it.
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
        kwargs["tie_word_embeddings"] = self.model["tied_head"]
        super().__init__(**kwargs)

    def model_config(self) -> ModelConfig:
        """What the language model is built from."""
        return from_dict(ModelConfig, self.model | {"vocab_size": self.vocab_size}, "model")

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.model["d_model"]

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.model["n_layers"]

    @property
    def max_position_embeddings(self) -> int | None:
        """Longest sequence of one forward pass; None where there is no limit."""
        return self.model["max_seq_len"] if self.model["position"] == "learned" else None
