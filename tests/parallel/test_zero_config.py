"""DeepSpeed's options: made from ours, merged with the user's, contradictions refused by name."""

import pytest

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.parallel.zero_config import engine_config
from gam_scale.strict import from_dict


def config(stage=3, **deepspeed):
    model = {"d_model": 16, "n_layers": 1, "vocab_size": 20, "gam": {"n_slots": 4}}
    parallel = {"zero_stage": stage, "deepspeed": deepspeed}
    train = {"steps": 1, "global_batch_size": 8, "micro_batch_size": 2}
    return from_dict(RunConfig, {"model": model, "train": train, "parallel": parallel})


def test_batches_follow_from_the_train_section():
    options = engine_config(config(), readers=2)
    assert options["train_micro_batch_size_per_gpu"] == 2
    assert options["gradient_accumulation_steps"] == 2


def test_raw_options_are_merged():
    raw = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 77}}
    options = engine_config(config(**raw, wall_clock_breakdown=True), readers=1)
    zero = options["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["reduce_bucket_size"]) == (3, True, 77)
    assert options["wall_clock_breakdown"] is True


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (["torch.nn.Linar"], "has 'torch.nn.Linar', which is not there; expected a list"),
        (["no_such_package.Linear"], "has 'no_such_package.Linear', which is not there"),
        (["Linear"], "has 'Linear', which is not there"),
        (None, "is None; expected a list of classes"),
        ([7], r"is \[7\]; expected a list of classes"),
        (
            ["gam_scale.model.memory.gate.Gate"],
            "has 'gam_scale.model.memory.gate.Gate', whose weight, bias must keep fp32; expected",
        ),
        (["gam_scale.model.mixers.mamba.MambaMixer"], "has .*, whose A_log, D must keep fp32"),
    ],
)
def test_modules_sent_in_bf16_are_looked_up(modules, said):
    raw = {"torch_autocast": {"lower_precision_safe_modules": modules}}
    with pytest.raises(UserError, match=f"lower_precision_safe_modules {said}"):
        engine_config(config(**raw), readers=1)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (
            {"zero_optimization": {"stage": 1}},
            r"parallel.deepspeed.zero_optimization.stage is 1 .*",
        ),
        (
            {"gradient_clipping": 0.3},
            r"parallel.deepspeed.gradient_clipping is 0.3 .* makes it 1.0",
        ),
        ({"train_batch_size": 64}, "parallel.deepspeed.train_batch_size is set, but batches"),
        ({"bf16": {"enabled": True}}, "parallel.deepspeed.bf16 is set, but train.precision"),
    ],
)
def test_contradictions_are_refused(raw, said):
    with pytest.raises(UserError, match=said):
        engine_config(config(**raw), readers=1)
