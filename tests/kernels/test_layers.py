"""Test layers on stand-ins for kernels against portable ones: recomputed, compiled, cut up."""

from types import SimpleNamespace

import pytest
import stand_ins
import torch
from closeness import is_alive, off, worst
from ranks import run_ranks
from small import BY_CHANNEL, WHOLE, small

from gam_scale.config import ModelConfig, ParallelConfig, RunConfig
from gam_scale.kernels.choice import Choice, HasKernels, choose
from gam_scale.model.layout import Layout
from gam_scale.model.lm import build_model
from gam_scale.parallel import implementations
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.context import SequenceContext
from gam_scale.strict import from_dict

IMPLEMENTATIONS = {"delta": "fla", "slot": "fla", "mamba": "mamba_ssm", "mamba2": "mamba_ssm"}
LENGTH = 24


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    stand_ins.install(monkeypatch)


def make_model(kind, implementation="portable"):
    model = build_model(small(kind, position="rotary"), seed=0)
    for module in model.modules():
        if isinstance(module, HasKernels):
            module.implementation = implementation
    return model


def make_batch(model, length=LENGTH, documents=True):
    tokens = torch.randint(23, (2, length + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).repeat(2, 1)
    if documents:
        positions[0, 5:] -= 5
        positions[0, 17:] -= 12
        positions[1] += 3
        layout = Layout.of(positions)
    else:
        layout = Layout.stream(2, length)
    return tokens[:, :-1], tokens[:, 1:], layout.turned(model.config.rotation())


def loss_and_gradients(model, batch, bf16=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(*batch)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def largest_difference(found, expected):
    return worst(off(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("documents", [True, False])
@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_a_kernel_stands_for_the_portable_form(kind, documents):
    plain, model = make_model(kind), make_model(kind, IMPLEMENTATIONS[kind])
    batch = make_batch(model, documents=documents)
    expected, found = (loss_and_gradients(m, batch) for m in (plain, model))
    assert [f"{kind}_forward", f"{kind}_backward"] == stand_ins.CALLS
    assert largest_difference(found, expected) < 1e-4  # both are float32 outside the kernel


@pytest.mark.parametrize(
    ("layer", "called"),
    [(WHOLE, "delta"), (BY_CHANNEL, "channel"), (WHOLE | {"strength_per": "channel"}, "channel")],
)
def test_the_kernel_takes_the_whole_recipe(layer, called):
    """Values have their own width and number of heads, and strengths are up to 2."""
    plain, model = make_model(layer), make_model(layer, "fla")
    batch = make_batch(model)
    expected, found = (loss_and_gradients(m, batch) for m in (plain, model))
    assert [f"{called}_forward", f"{called}_backward"] == stand_ins.CALLS
    (memory,) = (m for m in model.modules() if isinstance(m, HasKernels))
    for context in (1, 2):
        trials = memory.trials(context)
        choice = choose(trials, torch.device("cpu"), torch.float32, "tf32", lambda here: here)
        assert (choice.implementation, choice.reasons) == ("fla", [])
    assert largest_difference(found, expected) < 1e-4  # both are float32 outside the kernel


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_what_is_recomputed(kind, recompute, how):
    """Selective keeps the kernel's results; full runs the kernel again. A block is one graph."""
    torch._dynamo.reset()
    model, plain = (make_model(kind, IMPLEMENTATIONS[kind]) for _ in range(2))
    batch = make_batch(model)
    expected = loss_and_gradients(plain, batch)
    stand_ins.CALLS.clear()
    compilation = prepare_blocks(
        model, recompute, compiled=how == "compiled", backend="aot_eager", segment=1 << 20
    )
    found = loss_and_gradients(model, batch)
    forwards = [f"{kind}_forward"] * (2 if recompute == "full" else 1)
    assert [*forwards, f"{kind}_backward"] == stand_ins.CALLS
    assert largest_difference(found, expected) < 1e-5
    assert compilation.graphs == (how == "compiled")
    with torch.no_grad():
        assert off(model(*batch), expected[0]) < 1e-6


@pytest.mark.parametrize("how", ["eager", "compiled"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("kind", ["delta", "slot", "mamba2"])
def test_segments_in_bf16(kind, recompute, how):
    """Each segment starts from the state of the one before; the kernel gets bfloat16 inputs."""
    torch._dynamo.reset()
    plain, model = make_model(kind), make_model(kind, IMPLEMENTATIONS[kind])
    batch = make_batch(model)
    expected = loss_and_gradients(plain, batch)
    prepare_blocks(model, recompute, compiled=how == "compiled", backend="aot_eager", segment=14)
    found = loss_and_gradients(model, batch, bf16=True)
    assert stand_ins.CALLS.count(f"{kind}_backward") == 2
    assert stand_ins.CALLS.count(f"{kind}_forward") == (4 if recompute == "full" else 2)
    # bfloat16's 8 bits, in all products of the model.
    assert off(found[0], expected[0]) < 1e-2
    flat = [torch.cat([x.flatten() for x in grads[1:]]) for grads in (found, expected)]
    assert off(*flat) < 5e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("context", [1, 2])
@pytest.mark.parametrize("kind", ["delta", "slot", "mamba2"])
def test_the_choice_takes_it(kind, context, dtype):
    (layer,) = (m for m in make_model(kind).modules() if isinstance(m, HasKernels))
    trials = layer.trials(context)
    choice = choose(trials, torch.device("cpu"), dtype, "tf32", lambda here: here)
    assert (choice.implementation, choice.reasons) == (IMPLEMENTATIONS[kind], [])
    assert len(trials) == (2 if kind == "delta" and context > 1 else 1)


def test_the_choice_for_mamba():
    (layer,) = (m for m in make_model("mamba").modules() if isinstance(m, HasKernels))
    choice = choose(layer.trials(1), torch.device("cpu"), torch.float32, "ieee", lambda here: here)
    assert (choice.implementation, choice.reasons) == ("mamba_ssm", [])
    assert layer.trials(2) == []  # its scan takes no initial state


@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_the_installed_packages_cannot_run_here_and_the_choice_says_so(monkeypatch, kind):
    """A machine without a GPU lacks the package, or a driver for its kernels."""
    monkeypatch.undo()
    (layer,) = (m for m in make_model(kind).modules() if isinstance(m, HasKernels))
    device = torch.device("cpu")
    choice = choose(layer.trials(1), device, torch.bfloat16, "ieee", lambda here: here)
    assert choice.implementation == "portable"
    (reason,) = choice.reasons
    assert reason.startswith(f"{IMPLEMENTATIONS[kind]}: ") and "Error" in reason


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_layer_is_told_once_for_each_kind(monkeypatch, caplog, device):
    config = RunConfig()
    config.train.fp32_matmul = "tf32"
    config.model = ModelConfig(layers=["delta", "mamba", "static", "phase"], n_layers=8)
    config.model.vocab_size = 31
    model = build_model(config.model, 0)
    asked = []

    def trying(trials, *_):
        asked.append(len(trials))
        return Choice("portable", ["fla: no"]) if len(asked) > 1 else Choice("fla", [])

    monkeypatch.setattr(implementations, "choose", trying)
    world = SimpleNamespace(device=torch.device(device), is_main=True, any=bool)
    with caplog.at_level("INFO", "gam_scale"):
        implementations.choose_implementations(model, config, world)
    layers = [m for m in model.modules() if isinstance(m, HasKernels)]
    assert [m.fp32_matmul for m in layers] == ["tf32"] * 6
    told = [layer.implementation for layer in layers]
    if device == "cpu":
        assert (told, asked, caplog.messages) == (["portable"] * 6, [], [])
    else:
        assert told == ["fla", "portable", "portable"] * 2
        assert caplog.messages == [
            "trying fla for DeltaMemory, whose kernels are compiled first",
            "DeltaMemory runs in fla",
            "trying mamba_ssm for MambaMixer, whose kernels are compiled first",
            "MambaMixer runs in its portable form (fla: no)",
        ]


@pytest.mark.parametrize(("precision", "says"), [("fp32", True), ("bf16", False)])
def test_windows_without_a_kernel_are_said_to_be_slow(caplog, precision, says):
    config, window = RunConfig(), {"kind": "attention", "window": 9}
    config.train.precision = precision
    config.model = from_dict(ModelConfig, {"layers": [window], "vocab_size": 31})
    world = SimpleNamespace(device=torch.device("cuda"), is_main=True, any=bool)
    implementations.choose_implementations(build_model(config.model, 0), config, world)
    assert ["windows of attention in fp32" in text for text in caplog.messages] == [True] * says


def differences_over_ranks(world):
    """Return the largest errors of loss and gradients on ranks that share sequences, by case."""
    patch = pytest.MonkeyPatch()
    stand_ins.install(patch)
    world = world.arranged(ParallelConfig(context=world.world_size))
    context, found = SequenceContext(world), {}
    for kind in ("delta", "slot", WHOLE, BY_CHANNEL, "mamba2"):
        kernel = "mamba_ssm" if kind == "mamba2" else "fla"
        for documents in (True, False):
            whole, cut = make_model(kind), make_model(kind, kernel)
            tokens, targets, layout = make_batch(whole, length=48, documents=documents)
            expected = loss_and_gradients(whole, (tokens, targets, layout))
            cut.context = context
            here = slice(24 * world.rank, 24 * (world.rank + 1))
            part = layout.part(world.rank, world.world_size)
            results = loss_and_gradients(cut, (tokens[:, here], targets[:, here], part))
            for result in results:
                world.all_reduce(result)
            found[f"{kind}, {documents}"] = largest_difference(results, expected)
    patch.undo()
    return found


def test_sequences_over_ranks():
    for differences in run_ranks(differences_over_ranks, 2):
        assert worst(differences.values()) < 1e-4, differences  # float32


def test_products_of_memories_in_tf32_are_the_same_on_a_cpu():
    for kind in ("delta", "slot", "phase"):
        plain, model = make_model(kind), make_model(kind)
        for module in model.modules():
            if hasattr(module, "fp32_matmul"):
                module.fp32_matmul = "tf32"
        batch = make_batch(model)
        expected, found = (loss_and_gradients(m, batch) for m in (plain, model))
        assert all(map(is_alive, found))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), kind
