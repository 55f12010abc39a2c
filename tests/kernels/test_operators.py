"""Test kernels as operators: they take documents as stretches; torch traces and recomputes."""

import pytest
import recurrences
import stand_ins
import torch
from closeness import off, worst
from packed import packed_inputs, results
from torch.utils.checkpoint import checkpoint

from gam_scale.kernels import delta
from gam_scale.kernels.channel_delta import fla_channel_delta
from gam_scale.kernels.delta import fla_delta
from gam_scale.kernels.slot import fla_slot

OPERATORS = {
    "delta": (fla_delta, recurrences.delta),
    "slot": (fla_slot, recurrences.slot),
    "kda": (fla_channel_delta, recurrences.erasing_delta),
    "gdn2": (fla_channel_delta, recurrences.erasing_delta),
}


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    stand_ins.install(monkeypatch)


def exact(kind, inputs, positions):
    oracle = OPERATORS[kind][1]
    inputs = {name: x.double() for name, x in inputs.items()}
    return results(lambda *leaves: oracle(*leaves, positions), inputs)


@pytest.mark.parametrize("kind", OPERATORS)
def test_packed_documents_and_states(kind):
    operator = OPERATORS[kind][0]
    inputs, where, positions = packed_inputs(kind)
    found = results(lambda *leaves: operator(*leaves, *where), inputs)
    for name, expected in exact(kind, inputs, positions).items():
        # The stand-in computes in float64; float32 around it keeps 7 digits.
        assert off(found[name], expected) < 1e-5, name


@pytest.mark.parametrize("kind", OPERATORS)
def test_rows_that_never_begin_anew(kind):
    operator = OPERATORS[kind][0]
    inputs, _, _ = packed_inputs(kind)
    ends, starts = torch.tensor([0, 80, 160], dtype=torch.int32), torch.tensor([False, False])
    found = results(lambda *leaves: operator(*leaves, starts, ends, ends.clone()), inputs)
    if kind == "slot":  # nothing of the bank is read
        assert not found["bank"].any()
        inputs["bank"] = inputs["bank"] * 0
        del found["bank"]
    expected = slot_without_bank(inputs) if kind == "slot" else exact(kind, inputs, None)
    for name, value in found.items():
        assert off(value, expected[name]) < 1e-5, name


def slot_without_bank(inputs):
    inputs = {name: x.double() for name, x in inputs.items()}
    bank = inputs.pop("bank")
    return results(lambda *leaves: recurrences.slot(*leaves, bank), inputs)


@pytest.mark.parametrize("kind", OPERATORS)
def test_products_in_bfloat16_keep_gates_and_states(kind):
    operator = OPERATORS[kind][0]
    inputs, where, positions = packed_inputs(kind)
    for name in "qkv":
        inputs[name] = inputs[name].bfloat16()
    found = results(lambda *leaves: operator(*leaves, *where), inputs)
    for name, value in found.items():
        expected = torch.bfloat16 if name in ("y", *"qkv") else torch.float32
        assert value.dtype == expected, name
    # bfloat16 has 8 bits: they round the results and, for slot, the share that goes in.
    wanted = exact(kind, inputs, positions)
    assert worst(off(found[name], wanted[name]) for name in found) < 1e-2


@pytest.mark.parametrize("kind", OPERATORS)
def test_torch_can_trace_it(kind):
    """The compiler needs its shapes, dtypes and gradients without running it."""
    inputs, where, _ = packed_inputs(kind)
    inputs = [x.requires_grad_() for x in inputs.values()]
    if kind == "slot":
        share = -torch.expm1(inputs[3].detach())
        inputs.insert(3, share.requires_grad_())
    name = {"kda": "channel_delta", "gdn2": "channel_delta"}.get(kind, kind)
    torch.library.opcheck(getattr(torch.ops.gam_scale, f"fla_{name}").default, (*inputs, *where))


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_loss_on_the_last_state_alone(kind):
    operator = OPERATORS[kind][0]
    inputs, where, positions = packed_inputs(kind)
    leaves = [x.requires_grad_() for x in inputs.values()]
    doubles = [x.detach().double().requires_grad_() for x in leaves]
    pairs = ((operator, leaves, where), (OPERATORS[kind][1], doubles, (positions,)))
    found, expected = (
        torch.autograd.grad(f(*xs, *rest)[1].square().sum(), xs[1:]) for f, xs, rest in pairs
    )
    assert worst(off(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5


@pytest.mark.parametrize("kind", OPERATORS)
def test_a_checkpoint_recomputes_it(kind):
    operator = OPERATORS[kind][0]
    inputs, where, _ = packed_inputs(kind)

    def run(*leaves):
        return operator(*leaves, *where)

    expected = results(run, inputs)
    found = results(lambda *leaves: checkpoint(run, *leaves, use_reentrant=False), inputs)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


def test_what_fla_refuses_later_is_refused_before_anything_is_compiled(monkeypatch):
    utils = pytest.importorskip("fla.utils")
    monkeypatch.undo()  # the stand-ins
    for name, found in (("IS_NVIDIA_HOPPER", True), ("TRITON_ABOVE_3_7_1", False)):
        monkeypatch.setattr(utils, name, found)
    with pytest.raises(RuntimeError, match="with this Triton; expected 3.7.1 or newer"):
        delta.functions()
