"""Run on our models the tests that transformers runs on each of its own.

These tests are in the source distribution of transformers, not in the package.
``make test-transformers`` downloads it and sets ``TRANSFORMERS_TESTS`` to its folder of tests.
"""

import importlib
import os
import sys
import types
import unittest

import pytest
import torch
from small import VOCAB, small

from gam_scale.strict import to_dict

FOLDER = os.environ.get("TRANSFORMERS_TESTS", "")
if not FOLDER:
    pytest.skip("TRANSFORMERS_TESTS names no folder", allow_module_level=True)

from gam_scale.export.templates.configuration_gam_scale import GAMScaleConfig  # noqa: E402
from gam_scale.export.templates.modeling_gam_scale import (  # noqa: E402
    GAMScaleForCausalLM,
    GAMScaleForSequenceClassification,
    GAMScaleModel,
)

DO_NOT_APPLY = {
    "test_attention_outputs": "most layers have no attention weights, and none gives them back",
    "test_retain_grad_hidden_states_attentions": "asks for attention weights",
    "test_generation_tester_mixin_inheritance": "tests of generate are not in the distribution",
} | dict.fromkeys(
    (
        "test_gradient_checkpointing_enable_disable",
        "test_training_gradient_checkpointing",
        "test_training_gradient_checkpointing_use_reentrant_false",
        "test_training_gradient_checkpointing_use_reentrant_true",
    ),
    "looks for a layer of transformers' own class that recomputes itself; these are recomputed by "
    "the model that holds them (tests/export/test_transformers.py)",
)
"""Tests that are skipped, each with what it needs that these models do not have."""


def _mixin() -> type:
    """Return the ModelTesterMixin of FOLDER, imported as the package ``transformers_tests``.

    The name ``tests`` is this project's own. The mixin imports two classes from folders that the
    distribution leaves out; it needs their names only, so empty classes replace them.
    """
    package = types.ModuleType("transformers_tests")
    package.__path__ = [os.path.abspath(FOLDER)]
    sys.modules[package.__name__] = package
    for module, name in (
        ("exporters", "ExportTesterMixin"),
        ("generation", "GenerationTesterMixin"),
    ):
        inner = {"exporters": "test_export", "generation": "test_utils"}[module]
        holder = types.ModuleType(f"{package.__name__}.{module}")
        holder.__path__ = []
        sys.modules[holder.__name__] = holder
        leaf = types.ModuleType(f"{holder.__name__}.{inner}")
        setattr(leaf, name, type(name, (), {}))
        sys.modules[leaf.__name__] = leaf
    common = importlib.import_module("transformers_tests.test_modeling_common")
    common.MODEL_MAPPING_NAMES[GAMScaleConfig.model_type] = GAMScaleModel.__name__  # has no loss
    return common.ModelTesterMixin


class _Tester:
    """What the tests need to know of a model: sizes, a configuration, inputs."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_labels = 3, 7, 16, 2, 3
    vocab_size, is_training, type_sequence_label_size = VOCAB, True, 2

    def __init__(self, kinds: tuple, **settings) -> None:
        self.kinds, self.settings = kinds, settings

    def get_config(self) -> GAMScaleConfig:
        model = to_dict(small(*self.kinds, max_seq_len=64, **self.settings))
        return GAMScaleConfig(model=model, pad_token_id=0, bos_token_id=1, eos_token_id=2)

    def prepare_config_and_inputs_for_common(self):
        ids = torch.randint(3, VOCAB, (self.batch_size, self.seq_length))
        mask = torch.tril(torch.ones_like(ids))
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


class _Models(_mixin()):  # type: ignore[misc]
    all_model_classes = (GAMScaleModel, GAMScaleForCausalLM, GAMScaleForSequenceClassification)
    has_attentions = False

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = dict(super()._prepare_for_class(inputs_dict, model_class, return_labels))
        rows, length = inputs_dict["input_ids"].shape
        if return_labels and model_class is GAMScaleForCausalLM:
            inputs["labels"] = torch.zeros(rows, length, dtype=torch.long)
        if return_labels and model_class is GAMScaleForSequenceClassification:
            inputs["labels"] = torch.zeros(rows, dtype=torch.long)
        return inputs


def _skipped(name: str, reason: str):
    return unittest.skip(reason)(lambda self: None)


for _name, _reason in DO_NOT_APPLY.items():
    setattr(_Models, _name, _skipped(_name, _reason))


class TestGAMDelta(_Models, unittest.TestCase):
    def setUp(self):
        self.model_tester = _Tester(("gam_delta", "gam_delta"), position="learned")


class TestHybrid(_Models, unittest.TestCase):
    def setUp(self):
        attention = {"kind": "attention", "n_heads": 2, "n_kv_heads": 1}
        self.model_tester = _Tester(("gam_delta", attention), position="rotary")
