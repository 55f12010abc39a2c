"""What works without Linux or an NVIDIA GPU, tried here by taking away what macOS lacks."""

import configparser
import json
import os
import re
import shlex
import subprocess
from contextlib import nullcontext

import pytest
import torch
from packaging.requirements import Requirement
from pages import ROOT, commands
from small import small
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from warm import run

from gam_scale.config import ParallelConfig, RunConfig, load_config
from gam_scale.data.packing import Batch
from gam_scale.data.transfer import Transfer
from gam_scale.errors import UserError
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.processor import find_device
from gam_scale.model import rotary
from gam_scale.model.layout import Layout
from gam_scale.model.lm import outline
from gam_scale.model.parts import MIXERS
from gam_scale.model.rotary import Rotation
from gam_scale.model.widest import widest
from gam_scale.parallel import blocks
from gam_scale.parallel.build import check_engine
from gam_scale.parallel.device import on_apple_gpu, on_gpus
from gam_scale.strict import describe
from gam_scale.train.tally import Tally


@pytest.fixture
def apple(monkeypatch):
    """A machine with an Apple GPU and no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_auto_takes_an_apple_gpu_where_the_engine_knows_it(apple):
    assert not on_gpus("auto", {}) and not on_gpus("mps", {})
    assert on_apple_gpu("auto", "torch", 1) and on_apple_gpu("mps", "torch", 1)
    assert not on_apple_gpu("auto", "deepspeed", 1) and not on_apple_gpu("auto", "torch", 2)
    assert not on_apple_gpu("cpu", "torch", 1)
    assert find_device("auto").type == find_device("mps").type == "mps"
    with pytest.raises(UserError, match="parallel.device is mps with 2 ranks; expected one"):
        on_apple_gpu("mps", "torch", 2)


def test_auto_prefers_other_gpus(apple, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert on_gpus("auto", {}) and not on_gpus("mps", {})
    assert find_device("auto").type == "cuda"


def test_an_apple_gpu_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="mps but torch sees no Apple GPU .*; expected macOS"):
        on_apple_gpu("mps", "torch", 1)
    with pytest.raises(UserError, match="--device is mps but torch sees no Apple GPU"):
        find_device("mps")
    with pytest.raises(UserError, match="device is mps but parallel.engine is deepspeed, which"):
        load_config(ROOT / "configs/quickstart.json", ["parallel.device=mps"])
    assert not on_apple_gpu("auto", "torch", 1)


def test_blocks_run_uncompiled_there():
    assert can_compile("mps") == (False, "torch.compile for Apple's GPUs is untried here")


def test_there_is_a_segment_length_for_every_device():
    (devices,) = (form for key, form, *_ in describe(RunConfig) if key == "parallel.device")
    kinds = set(re.findall(r'"(\w+)"', devices)) - {"auto"}
    assert blocks.SEGMENT.keys() == kinds, ParallelConfig().device


class Wide(TorchDispatchMode):
    """Records the operators whose results on a device are float64 or complex."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.results, self.wide = device, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device.type == self.device:
                self.results += 1
                if x.dtype == torch.float64 or x.dtype.is_complex:
                    self.wide.add(str(func))
        return out


@pytest.mark.parametrize("kind", list(MIXERS))
def test_no_layer_asks_for_float64_on_a_device_that_has_none(kind, monkeypatch):
    """The device "meta" is neither CPU nor NVIDIA's GPU, and computes shapes and dtypes alone."""
    monkeypatch.setitem(blocks.SEGMENT, "meta", 8192)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)
    config = small(kind, position="rotary" if kind == "attention" else "none")
    model, tokens = outline(config), torch.randint(config.vocab_size, (2, 64))
    layout = Layout.of(torch.cat([torch.arange(40), torch.arange(24)]).expand(2, 64).contiguous())
    batch, meta = Batch(tokens, tokens.clone(), layout), torch.device("meta")
    batch = batch.turned(config.rotation(torch.float32))
    with Wide("meta") as watch:
        (sent,) = Transfer(meta)([batch])
        loss = model(sent.tokens, sent.targets, sent.layout)
        loss.backward()
        total = torch.zeros((), dtype=widest(meta), device=meta) + loss.detach()
        Tally(meta).add(1, total, 128, torch.ones((), device=meta))
    assert watch.results > 100 and not watch.wide


def test_rotary_tables_are_made_on_the_cpu_for_who_has_no_float64(monkeypatch):
    positions, rotation = torch.arange(70_000, 70_050).view(1, 50), Rotation(10_000.0, (16,))
    expected = rotary.tables(positions, rotation)[16]
    monkeypatch.setattr("gam_scale.model.widest.WITH_FLOAT64", ())
    for ours, theirs in zip(rotary.tables(positions, rotation)[16], expected, strict=True):
        assert torch.equal(ours, theirs)


LIKE_MACOS = """
import os, pathlib, runpy, signal, sys
sys.platform = "darwin"
for name in ("deepspeed", "triton", "fla"):
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[loaded]
    sys.modules[name] = None
for module, names in ((os, ("sched_getaffinity", "pidfd_open")), (signal, ("pidfd_send_signal",))):
    for name in names:
        delattr(module, name)
def without_proc(original):
    def read(path, *args, **kwargs):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(2, "no such file", str(path))
        return original(path, *args, **kwargs)
    return read
pathlib.Path.read_text = without_proc(pathlib.Path.read_text)
pathlib.Path.write_text = without_proc(pathlib.Path.write_text)
os.path.exists = (lambda real: lambda p: not str(p).startswith("/proc") and real(p))(os.path.exists)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_without_what_macos_lacks_a_run_trains_and_generates(tmp_path, tiny):
    script, config = tmp_path / "like_macos.py", tmp_path / "config.json"
    script.write_text(LIKE_MACOS)
    settings = tiny(tmp_path / "run", train={"steps": 3, "warmup_steps": 1})
    config.write_text(json.dumps(settings))
    done = run([script, "tools/pretrain.py", "--config", config], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted = ["tools/generate.py", tmp_path / "run", "the", "--max-tokens", "4"]
    assert run([script, *wanted], cwd=ROOT).returncode == 0
    asked = ["tools/pretrain.py", "--config", config, "--set", "parallel.engine=deepspeed"]
    done = run([script, *asked, "--set", f"log.run_dir={tmp_path / 'other'}"], cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "deepspeed, which is not installed" in done.stderr and "engine=torch" in done.stderr


def test_an_engine_that_is_there_is_taken():
    for engine in ("deepspeed", "fsdp", "torch"):
        check_engine(engine)


def test_elsewhere_linux_packages_are_left_out():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"] + config["options.extras_require"]["gpu"]
    wanted = [Requirement(x) for x in lines.splitlines() if x.strip() and not x.startswith("#")]
    for system, there in (("linux", {"deepspeed", "fla-core"}), ("darwin", set())):
        on = {"sys_platform": system}
        found = {each.name for each in wanted if not each.marker or each.marker.evaluate(on)}
        assert found & {"deepspeed", "fla-core"} == there and "torch" in found


@pytest.mark.parametrize(("system", "engine"), [("Darwin", "torch"), ("Linux", "deepspeed")])
def test_the_quickstart_takes_the_engine_that_is_there(tmp_path, system, engine):
    uname = tmp_path / "uname"
    uname.write_text(f"#!/bin/sh\necho {system}\n")
    uname.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(
        ["make", "-n", "quickstart"], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout
    (line,) = [each for each in said.splitlines() if "tools/pretrain.py" in each]
    assert ("parallel.engine=torch" in line) == (engine == "torch")
    assert ("bin/deepspeed" in line) == (engine == "deepspeed")


def test_the_commands_of_the_page_work(tmp_path, tiny):
    quick, activate, *typed = (each.line for each in commands(ROOT / "docs/laptops.md"))
    assert quick == "make quickstart" and activate.startswith(". .venv/bin/activate")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny(tmp_path / "run", train={"steps": 2, "warmup_steps": 1})))
    for command in typed:
        words = command.replace("configs/quickstart.json", str(config))
        _, *argv = shlex.split(words.replace("runs/", f"{tmp_path}/"))
        short = ["--set", "train.steps=2"] if "pretrain" in command else ["--max-tokens", "4"]
        done = run([*argv, *short], cwd=ROOT)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
