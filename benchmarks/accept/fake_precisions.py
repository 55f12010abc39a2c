"""Remakes precisions.json on a fake H100: python -m benchmarks.accept.fake_precisions [FILE]"""

import json
import math
import os
import sys
from pathlib import Path

from benchmarks.fake_cuda import device

if __name__ == "__main__":
    device.activate()  # before anything else imports torch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from benchmarks.accept.one_block import Maker
from benchmarks.accept.precisions import EXPECTED, KINDS, places
from benchmarks.accept.record import Check
from gam_scale.config import ModelConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, outline


def main() -> None:
    """Trace a block of each kind, and write the dtypes of its operators."""
    check = Check(Path(os.devnull), torch.device("cuda:0"), Path(), math.inf)
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = {kind: places(check, kind, Maker(without_numbers, sent)) for kind in KINDS}
    kept = {"torch": torch.__version__.partition("+")[0], "places": found}
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else EXPECTED
    file.write_text(json.dumps(kept, indent=1) + "\n")


def without_numbers(config: ModelConfig, seed: int, device: torch.device) -> LanguageModel:
    """Stand in for build_model, with parameters that have no numbers and take no memory."""
    with unset_fake_temporarily():
        model = outline(config)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, device=device)))
    return model


def sent(layout: Layout, device: torch.device) -> Layout:
    """Stand in for Layout.to on a fake device; what is read of a layout on the CPU stays."""
    return layout.map(lambda x: torch.empty_like(x, device=device))


if __name__ == "__main__":
    main()
