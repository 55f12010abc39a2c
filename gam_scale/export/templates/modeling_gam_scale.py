"""A GAM Scale language model in transformers: without a head, with one, or with a classifier."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from gam_scale.export.templates.cache_gam_scale import GAMScaleCache, cache_for
from gam_scale.export.templates.configuration_gam_scale import GAMScaleConfig
from gam_scale.export.templates.offload_gam_scale import fetched
from gam_scale.export.templates.rows_gam_scale import Rows
from gam_scale.model.embedding import Head
from gam_scale.model.lm import LanguageModel
from gam_scale.model.loss import capped
from gam_scale.model.policy import Draw, keeps_fp32, policy_of


class GAMScalePreTrainedModel(PreTrainedModel):
    """What the models of this file have in common."""

    config_class = GAMScaleConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # states cannot go back, as assisted generation would require
    _supports_sdpa = True

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Give the weights that were not loaded GAM Scale's own initial values."""
        config = self.config.model_config()
        draw = Draw(torch.default_generator, config.init, config.n_layers)
        for module in self.modules():
            if not hasattr(module, "policy"):
                self._initialize_weights(module)  # a module of torch, such as a resized head
                continue
            for name, p in module.named_parameters(recurse=False):
                if not getattr(p, "_is_hf_initialized", False):
                    value = torch.empty(p.shape, dtype=p.dtype, device="cpu")
                    with torch.device("cpu"):  # for tensors that a policy makes
                        policy_of(module, name).init(module, value, draw)
                    p.data.copy_(value)
                    p._is_hf_initialized = True  # type: ignore[attr-defined]


class GAMScaleModel(GAMScalePreTrainedModel):
    """The model without a head: token and position embeddings, the layers, the final norm."""

    embedding: nn.Module
    _gradient_checkpointing_func: Callable[..., Tensor]

    def __init__(self, config: GAMScaleConfig) -> None:
        super().__init__(config)
        own = replace(config.model_config(), tied_head=True)  # adds no head
        whole = LanguageModel(own)
        self.rotation, self.logit_softcap = own.rotation(), own.logit_softcap
        self.context_limit = whole.context_limit
        self.embedding, self.position = whole.embedding, whole.position
        self.dropout, self.blocks, self.norm = whole.dropout, whole.blocks, whole.norm
        self.gradient_checkpointing = False
        self._no_split_modules = sorted({type(block).__name__ for block in self.blocks})
        self._keep_in_fp32_modules_strict = [
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            for name in keeps_fp32(module)
            if getattr(module, name) is not None
        ]
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GAMScaleCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: GAMScaleCache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        """Return the final hidden states (B, T, hidden_size).

        Args:
            input_ids: (B, T) ids.
            attention_mask: (B, T), 0 at padding, which may stand anywhere; or (B, seen + T) after
                ``seen`` tokens in ``past_key_values``.
            position_ids: (B or 1, T); a new text starts at every 0, as in packed batches. None, and
                in padded rows: tokens are counted instead.
            past_key_values: the states after earlier tokens; the call updates them to those after
                its own tokens.
            inputs_embeds: (B, T, hidden_size), instead of ``input_ids``.
            use_cache: whether to return states. None: no.
            output_hidden_states: whether to return each layer's input and the final norm's output.
            return_dict: False: return a tuple.
            cache: ``past_key_values`` under the name that transformers has for it since 5.24.
            **kwargs: arguments of other models, which are ignored.

        Raises:
            ValueError: there are both ids and embeddings, or neither; a text is longer than the
                model's positions; or a mask or a cache does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if self._recomputes:
            use_cache, cache = False, None
        cache = cache_for(cache, bool(use_cache))
        shape = x.shape[0], x.shape[1]
        rows = Rows.of(shape, x.device, attention_mask, position_ids, cache)
        x, states = self._through_layers(x, rows, cache, self._asks(output_hidden_states))
        if cache is not None:
            cache.seen += rows.layout.length
            cache.positions, cache.begun = rows.positions, rows.begun
        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache,  # type: ignore[arg-type]  # declared as one of transformers' own
            hidden_states=states,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.embedding = value

    @property
    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training

    def _asks(self, output_hidden_states: bool | None) -> bool:
        if output_hidden_states is None:
            return bool(self.config.output_hidden_states)
        return output_hidden_states

    def _through_layers(
        self, x: Tensor, rows: Rows, cache: GAMScaleCache | None, keep: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Return the final norm's output; if ``keep``, also each layer's input and that output."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stream of all layers is float32, as in training
        rotation = self.rotation
        if rotation is not None:
            rotation = rotation._replace(dtype=torch.promote_types(x.dtype, torch.float32))
        layout = rows.layout.turned(rotation)
        x = rows.ordered(x)
        if self.position is not None:
            x = x + self.position(self._learned(layout.positions, layout.length, cache))
        x, states = self.dropout(x), []
        for index, block in enumerate(self.blocks):
            if keep:
                states.append(rows.restored(x))
            with fetched(block):
                if self._recomputes:
                    x = self._gradient_checkpointing_func(block.__call__, x, layout)
                elif cache is None:
                    x = block(x, layout)
                else:
                    x = block(x, layout, None, cache.layer(index))
        x = rows.restored(self.norm(x))
        return x, (*states, x) if keep else None

    def _learned(self, positions: Tensor, length: int, cache: GAMScaleCache | None) -> Tensor:
        """Return positions as indices into the table of learned positions.

        Without attention layers, a text may go on from a state beyond the end of the table. Its
        positions then start over, as they do at every training sequence.
        """
        assert self.position is not None
        limit = self.position.num_embeddings
        if cache is None or self.context_limit is not None:
            longest = length + (0 if cache is None else cache.seen)
            if longest > limit:
                raise ValueError(f"{longest} tokens exceed the model's context of {limit}")
        return positions % limit


class GAMScaleForCausalLM(GAMScalePreTrainedModel, GenerationMixin):
    """The model with a head, which is tied to the token embedding or has weights of its own.

    ``generate`` feeds one token at a time to the layers' states, in padded batches too. The cost
    per token does not grow with the text, except in attention layers.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: GAMScaleConfig) -> None:
        super().__init__(config)
        self.model = GAMScaleModel(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GAMScaleCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        cache: GAMScaleCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Return logits (B, T, vocab_size) and, given ``labels``, the mean loss.

        Args:
            input_ids: see :meth:`GAMScaleModel.forward`.
            attention_mask: see there.
            position_ids: see there.
            past_key_values: see there.
            inputs_embeds: see there.
            labels: (B, T), usually ``input_ids``; -100 where nothing is to be predicted. Token t
                predicts label t + 1.
            use_cache: see there.
            output_hidden_states: see there.
            logits_to_keep: number of last tokens whose logits are returned, or a tensor of tokens'
                indices; 0: all.
            return_dict: see there.
            cache: see there.
            **kwargs: for the loss, such as ``num_items_in_batch``, which its sum is divided by.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            cache=cache,
        )
        hidden, loss = output.last_hidden_state, None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if labels is None:
            logits = self._logits(hidden[:, kept])
        else:  # the loss is over all tokens, whichever logits are kept
            logits = self._logits(hidden)
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
            logits = logits[:, kept]
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = value

    def _logits(self, hidden: Tensor) -> Tensor:
        return capped(self.lm_head(hidden), self.model.logit_softcap)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the model has a cache of its own

    def _prepare_cache_for_generation(  # type: ignore[override]  # the rest is passed on
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        if generation_config.use_cache is not False and generation_config.prefill_chunk_size:
            # Without chunks the first call makes the cache, since adapters of prompts ask before
            # that call whether there is one.
            model_kwargs.setdefault(self._cache_name(), GAMScaleCache())

    def _cache_name(self) -> str:
        """Return this transformers' name of the cache argument: ``cache`` since 5.24."""
        takes = inspect.signature(self.prepare_inputs_for_generation).parameters  # type: ignore[misc]
        return "cache" if "cache" in takes else "past_key_values"


class GAMScaleForSequenceClassification(GAMScalePreTrainedModel):
    """The model with a classifier that reads each row's last token."""

    def __init__(self, config: GAMScaleConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = GAMScaleModel(config)
        self.score = Head(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple:
        """Return logits (B, num_labels) and, given ``labels``, the loss of ``config.problem_type``.

        Args:
            input_ids: (B, T) ids.
            attention_mask: (B, T), 0 at padding. None: ``config.pad_token_id`` at a row's end is
                padding.
            labels: (B,) classes, or labels in the form that the problem type takes.
            return_dict: False: return a tuple.
            **kwargs: see :meth:`GAMScaleModel.forward`.
        """
        output = self.model(input_ids, attention_mask, return_dict=True, **kwargs)
        hidden = output.last_hidden_state
        last = self._last_tokens(input_ids, attention_mask, hidden)
        logits = self.score(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config
            )
        result = SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def _last_tokens(self, ids: Tensor | None, mask: Tensor | None, hidden: Tensor) -> Tensor:
        """Return the index of each row's last token that is no padding, (B,)."""
        rows, length = hidden.shape[:2]
        if mask is None and ids is not None and self.config.pad_token_id is not None:
            mask = ids != self.config.pad_token_id
        if mask is None:
            return torch.full((rows,), length - 1, device=hidden.device)
        numbers = torch.arange(length, device=mask.device)
        return (numbers * (mask[:, -length:] != 0)).argmax(1).to(hidden.device)
