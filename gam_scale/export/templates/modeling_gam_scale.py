"""A GAM Scale language model as a Hugging Face causal language model."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from gam_scale.export.templates.configuration_gam_scale import GAMScaleConfig
from gam_scale.model.init import initial_values
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel
from gam_scale.model.loss import IGNORE, capped, linear_cross_entropy


class GenerationState:
    """What the blocks remember between tokens, carried by ``generate`` as ``past_key_values``."""

    is_compileable = False
    is_croppable = False

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far."""
        return self.state["seen"]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Continue from rows ``beam_idx`` (B,) of the batch, as beam search asks."""
        self.state["blocks"] = [
            {k: v.index_select(0, beam_idx.to(v.device)) if v.dim() else v for k, v in s.items()}
            for s in self.state["blocks"]
        ]


class GAMScaleForCausalLM(PreTrainedModel, GenerationMixin):
    """The model with its head, tied to the token embedding or of its own.

    ``generate`` feeds one token at a time to the blocks' state, at a cost per token that does not
    grow with the text (attention blocks apart). Padding has no place in that state, so batches with
    left padding are computed anew from their first token each time: as correct, but slower.
    """

    config_class = GAMScaleConfig
    base_model_prefix = "model"
    accepts_loss_kwargs = True
    _is_stateful = True  # a state cannot go back, which assisted generation would ask of it

    def __init__(self, config: GAMScaleConfig) -> None:
        super().__init__(config)
        self.model = LanguageModel(config.model_config())
        self._no_split_modules = sorted({type(block).__name__ for block in self.model.blocks})
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: GenerationState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple:
        """Logits, and the mean loss where ``labels`` are given.

        Args:
            input_ids: (B, T) ids.
            attention_mask: (B, T), 0 at padding on either side.
            past_key_values: the state behind earlier tokens; used up by the call.
            labels: (B, T), usually ``input_ids``; -100 where nothing is to be predicted. Token t
                predicts label t + 1.
            use_cache: give a state back, and logits of the last token only.
            logits_to_keep: logits of so many last tokens; 0: of all.
            num_items_in_batch: what the summed loss is divided by; None: its valid labels.

        Raises:
            ValueError: the sequence is longer than the model's positions, or padded with a state;
                or weights are where they would not all be used.
        """
        self._check_weights(input_ids)
        if past_key_values is not None or use_cache:
            output = self._extend(input_ids, attention_mask, past_key_values)
        else:
            layout = _layout(attention_mask)
            self._check_length(input_ids.shape[1], self.config.max_position_embeddings)
            hidden = self.model.hidden(input_ids, layout)
            loss = None if labels is None else self._loss(hidden, labels, num_items_in_batch)
            logits = F.linear(hidden[:, -logits_to_keep:], self.model.head_weight)
            logits = capped(logits, self.model.logit_softcap)
            output = CausalLMOutputWithPast(loss=loss, logits=logits)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def prepare_inputs_for_generation(  # type: ignore[override]  # the rest goes through kwargs
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What ``generate`` passes to :meth:`forward`: new tokens, or all of a padded batch."""
        if _layout(attention_mask) is not None:
            next_sequence_length, kwargs["use_cache"] = None, False
        kwargs |= {"next_sequence_length": next_sequence_length, "attention_mask": attention_mask}
        # Declared of a mixin's self and of LongTensor, which a plain Tensor of ids is not.
        return super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[misc, arg-type]

    def initialize_weights(self) -> None:
        """GAM Scale's own initial values for the weights that were not loaded."""
        missing = {
            name: p
            for name, p in self.model.named_parameters()
            if not getattr(p, "_is_hf_initialized", False)
        }
        if missing:
            seed = torch.initial_seed()
            for name, value in initial_values(self.model, self.config.model_config(), seed):
                if name in missing:
                    missing[name].data.copy_(value)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding, where the head is tied the head's weight as well."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding, and with it a head that is tied to it."""
        assert isinstance(value, nn.Embedding)
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The head, where it has a weight of its own."""
        return self.model.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Replace the head."""
        self.model.head = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes its own state

    def _extend(
        self, input_ids: Tensor, attention_mask: Tensor | None, past: GenerationState | None
    ) -> CausalLMOutputWithPast:
        if _layout(attention_mask) is not None:
            raise ValueError("a state cannot hold padding; pass use_cache=False for padded batches")
        state = self.model.init_state(input_ids.shape[0]) if past is None else past.state
        self._check_length(state["seen"] + input_ids.shape[1], self.model.context_limit)
        logits, state = self.model.extend(input_ids, state)
        past = GenerationState(state)
        return CausalLMOutputWithPast(logits=logits.unsqueeze(1), past_key_values=past)  # type: ignore[arg-type]

    def _loss(self, hidden: Tensor, labels: Tensor, n_items: int | Tensor | None) -> Tensor:
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
        head, cap = self.model.head_weight, self.model.logit_softcap
        total = linear_cross_entropy(hidden.flatten(0, 1), head, targets, softcap=cap)
        return total / ((targets != IGNORE).sum().clamp(min=1) if n_items is None else n_items)

    def _check_weights(self, input_ids: Tensor) -> None:
        """Refuse what puts its hands on calls of modules only: not every weight is used in one."""
        if self.model.head is None and hasattr(self.model.embedding, "base_layer"):
            raise ValueError(
                "the token embedding has an adapter, which the head would leave out though its "
                "weight is the embedding's; expected adapters on linear layers only"
            )
        if hasattr(self.model.head, "base_layer"):
            raise ValueError(
                "the head has an adapter, which would be left out, since its weight is read "
                "outside of it; expected adapters on linear layers of the blocks only"
            )
        if not input_ids.is_meta and any(p.is_meta for p in self.parameters()):
            raise ValueError(
                "some weights are offloaded (a device_map with cpu or disk beside other devices), "
                "from where a call would not fetch all of them; expected a model that is whole in "
                'memory, as device_map={"": 0} makes it'
            )

    def _check_length(self, length: int, limit: int | None) -> None:
        if limit is not None and length > limit:
            raise ValueError(f"{length} tokens exceed the model's context of {limit}")


def _layout(attention_mask: Tensor | None) -> Layout | None:
    """Each row's text, from its first real token on; None where nothing is padded.

    Padding on the left is a row of documents of one token each, which nothing leaves.
    """
    if attention_mask is None or bool(attention_mask.all()):
        return None
    positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    return Layout.of(positions.cpu()).to(attention_mask.device)
