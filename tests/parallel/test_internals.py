"""The internals of DeepSpeed and torch that are replaced or relied on have not changed."""

import ast
import hashlib
from importlib import import_module, metadata
from pathlib import Path

import pytest

ZERO = "deepspeed.runtime.zero."
STAGE_1_2 = ZERO + "stage_1_and_2.DeepSpeedZeroOptimizer."
STAGE_3 = ZERO + "stage3.DeepSpeedZeroOptimizer_Stage3."
FSDP = "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam."

SOURCES = {
    "zero_lean.py": {
        # Replaced.
        STAGE_1_2 + "scaled_global_norm": "cf547427afff",
        STAGE_1_2 + "unscale_and_clip_grads": "2ad359d88af4",
        STAGE_3 + "_get_norm_groups": "177f236f119d",
        STAGE_3 + "unscale_and_clip_grads": "b1f18e3a3b52",
        STAGE_1_2 + "reduce_independent_p_g_buckets_and_remove_grads": "58cbba548e72",
        STAGE_3 + "__avg_scatter_grads": "ae21d3a20d79",
        # The methods that call them, and the one that links parameters to their masters.
        STAGE_1_2 + "step": "2debb4f6bc7c",
        STAGE_3 + "step": "7491cc0be5ba",
        STAGE_3 + "_prepare_fp32_grad_for_sub_group": "b00361e3fb18",
        STAGE_1_2 + "_link_all_hp_params": "a62fbab6c310",
    },
    "fsdp_precision.py": {
        FSDP + "init_dtype_attrs": "3820e1e78770",
        FSDP + "accumulate_unsharded_grad_if_needed": "0d5f5ed09835",
    },
}
"""By file of gam_scale/parallel, the methods that it relies on, each with a digest of its code."""
PINNED = {"deepspeed": "0.19.8", "torch": "2.13.0"}
"""The versions whose code was read."""


def digest_of(path):
    """Return a digest of a method's code, without comments, docstring and layout."""
    module, kind, name = path.rsplit(".", 2)
    tree = ast.parse(Path(import_module(module).__file__).read_text())
    bodies = [n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind]
    nodes = [n for n in sum(bodies, []) if isinstance(n, ast.FunctionDef) and n.name == name]
    if not nodes:
        return "missing"
    (node,) = nodes
    if ast.get_docstring(node):
        node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(node).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("file", "path"), [(file, path) for file, paths in SOURCES.items() for path in paths]
)
def test_methods_that_are_relied_on_are_those_that_were_read(file, path):
    package = path.partition(".")[0]
    version = metadata.version(package).partition("+")[0]
    if version != PINNED[package] and package == "torch":
        pytest.skip(f"read in torch {PINNED['torch']}; this is {version}")
    found = digest_of(path)
    assert found == SOURCES[file][path], (
        f"{path} of {package} {version} is not that of {PINNED[package]}, on which "
        f"gam_scale/parallel/{file} relies: read it, mend that file, then put {found} here"
    )


def test_deepspeed_still_has_the_switches_that_are_set():
    """A switch that DeepSpeed no longer reads could still be set, but without effect."""
    ops = import_module("deepspeed.ops")
    assert "deepspeed_shm_comm" in ops.__compatible_ops__, "what compiles at start-up is renamed"
    engine = Path(import_module("deepspeed.runtime.engine").__file__).read_text()
    assert "if self.enable_backward_allreduce and" in engine, "stage 0's all-reduce has no switch"


def test_a_changed_or_missing_method_is_noticed():
    assert digest_of(STAGE_1_2 + "no_such_method") == "missing"
    assert digest_of(STAGE_1_2 + "step") != digest_of(STAGE_3 + "step")
