"""tools/plan.py as a user runs it."""

import json
import os
from pathlib import Path

import pytest

from gam_scale.data.prepare import PrepareSpec

CONFIG = {
    "model": {"d_model": 512, "n_layers": 6, "vocab_size": 10_000, "max_seq_len": 256},
    "data": {"sets": [{"path": "not/there"}], "seq_len": 256},
    "train": {"steps": 1000, "global_batch_size": 4096, "micro_batch_size": 8},
}


@pytest.fixture
def plan(tool, tmp_path):
    """Return ``plan(argument, ...)``, which plans for 2 x 8 h100; later arguments override that."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))

    def run(*arguments):
        hardware = ("--nodes", 2, "--gpus-per-node", 8, "--gpu", "h100")
        return tool("plan", "--config", path, *hardware, *arguments)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--gpu", "abacus"),
            "--gpu is abacus, which is not in the table; expected one of b200, h200",
        ),
        (("--gpu", "memory=80,bf16=900"), "--gpu memory=80,bf16=900 lacks bandwidth; expected"),
        (("--gpu", "memory=80,fp32=nan"), "--gpu has fp32=nan; expected figures above 0"),
        (("--gpu", "memory=80,fp32=60,speed=9"), "--gpu has speed=9; expected figures above 0"),
        (
            ("--gpu", "t4", "--set", "train.precision=bf16"),
            "t4 has no rate for bf16; expected train.precision fp32",
        ),
        (("--nodes", "0"), "--nodes is 0; expected a whole number, at least 1"),
        (("--gpus-per-node", "-1"), "--gpus-per-node is -1; expected a whole number, at least 1"),
        (
            ("--set", "parallel.context=32"),
            "parallel.context is 32, which does not divide the 16 ranks",
        ),
        (
            (
                "--set",
                "parallel.engine=deepspeed",
                "--set",
                'parallel.deepspeed={"zero_optimization": {"reduce_bucket_size": "auto"}}',
            ),
            "parallel.deepspeed.zero_optimization.reduce_bucket_size is 'auto'; expected a number",
        ),
        (
            ("--matmul-share", "1.5"),
            "--matmul-share is 1.5; expected a finite number, more than 0, at most 1",
        ),
        (("--price", "nan"), "--price is nan; expected a finite number, more than 0"),
        (("--network-gbps", "0"), "--network-gbps is 0; expected a finite number, more than 0"),
        (
            ("--set", "parallel.engine=fsdp", "--set", "parallel.shard_ranks=3"),
            "parallel.shard_ranks is 3, which does not divide the 16 ranks",
        ),
    ],
)
def test_bad_input_is_one_line(plan, arguments, message):
    done = plan(*arguments)
    assert done.status == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ") and message in line


def test_tables_fit_the_screen(plan):
    done = plan("--price", "2.5")
    assert done.status == 0, done
    assert max(map(len, done.out.splitlines())) <= 100
    for part in ("torch", "zero stage 3", "fsdp kept", "fsdp/8", "assumed: 65%", "USD"):
        assert part in done.out


def test_shards_over_all_ranks_by_their_number_are_as_configured(plan):
    out = plan("--set", "parallel.engine=fsdp", "--set", "parallel.shard_ranks=16").out
    assert "\n*fsdp " in out


def test_a_thousand_gpus_as_json(plan):
    arguments = ("--nodes", 128, "--set", "parallel.engine=fsdp", "--json", "--price", "2.5")
    figures = json.loads(plan(*arguments).out)
    assert figures["ranks"] == 1024
    (configured,) = [row for row in figures["engines"] if row["configured"]]
    assert configured["label"] == "fsdp" and configured["changes"] == []
    assert figures["cheapest"]["fits"] and figures["cost_usd"]["1,000 steps"] > 0


@pytest.mark.parametrize("gpu", ["b200", "l4", "v100-16", "t4"])
def test_a_gpu_of_the_table_is_planned_for(plan, gpu):
    figures = json.loads(plan("--gpu", gpu, "--json").out)
    assert figures["gpu"]["name"] == gpu and figures["assumptions"]["peak_flops"] > 1e12


def test_a_gpu_by_its_figures_is_as_one_of_the_table(plan):
    figures = "memory=80,bandwidth=3350,bf16=989.4,fp32=67,link=450,network=400"
    given, known = (json.loads(plan("--gpu", gpu, "--json").out) for gpu in (figures, "h100"))
    assert given["engines"] == known["engines"], "the same figures give another plan"


def test_the_cpu_of_this_machine(plan):
    figures = json.loads(plan("--gpu", "cpu", "--nodes", 1, "--gpus-per-node", 2, "--json").out)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert figures["gpu"]["memory_bytes"] == memory / 2, "two ranks have more than the machine"
    assert figures["gpu"]["peaks"]["fp32"] > 1e8
    assert any("CPU kernels" in note for note in figures["notes"])


def test_a_plan_for_one_process_of_a_cpu_speaks_of_no_gpu(plan):
    out = plan("--gpu", "cpu", "--nodes", 1, "--gpus-per-node", 1).out
    assert "\n1 rank on this CPU; " in out and "GiB per rank" in out and "GPU" not in out


def test_layers_that_have_kernels_are_noted(plan):
    done = plan("--set", 'model.layers=["slot"]', "--json")
    (note,) = [n for n in json.loads(done.out)["notes"] if "kernels" in n]
    assert note.startswith("slot layers are in their portable form")


@pytest.mark.filterwarnings("error:`isinstance:FutureWarning")  # a user must not see it
@pytest.mark.parametrize("name", ["gam_1b", "ctx16k", "ctx16k_hybrid", "ctx64k"])
def test_our_own_large_configs_fit(tool, name):
    config = Path(__file__).parents[2] / "configs" / f"{name}.json"
    done = tool("plan", "--config", config, "--nodes", 8, "--gpus-per-node", 8, "--gpu", "a100-40")
    assert done.status == 0, done
    (configured,) = [line for line in done.out.splitlines() if line.startswith("*")]
    assert configured.endswith("yes")
    assert max(map(len, done.out.splitlines())) <= 100
    assumed = f"{PrepareSpec.vocab_size:,} is assumed" in done.out
    assert assumed == (name != "gam_1b")
    kinds = "gam_delta, attention: " if name == "ctx16k_hybrid" else "gam_delta: "
    assert done.out.startswith(kinds) and ("a sequence, on 4 ranks" in done.out) == (
        name == "ctx64k"
    )


def test_the_nearest_where_nothing_fits(plan):
    figures = ("--set", "model.d_model=32768", "--set", "model.n_layers=120")
    done = plan(*figures, "--gpu", "rtx4090")
    assert "nothing fits; nearest is" in done.out


def test_stages_are_planned_by_the_fullest_and_their_times_added(plan):
    stages = [{"steps": 600, "seq_len": 64}, {"steps": 400, "micro_batch_size": 16}]
    small = ("--set", "model.n_layers=1", "--set", "model.d_model=64", "--json")
    staged = json.loads(plan(*small, "--set", f"train.stages={json.dumps(stages)}").out)
    changes = ("data.seq_len=64", "train.micro_batch_size=16")
    alone = [json.loads(plan(*small, "--set", each).out) for each in changes]
    rows = [next(e for e in one["engines"] if e["configured"]) for one in alone]
    for stage, row in zip(staged["stages"], rows, strict=True):
        assert stage["memory"] == row["memory"]["total"]
        assert stage["step_seconds"] == row["step_seconds"]
    assert rows[1]["memory"]["total"] > rows[0]["memory"]["total"]
    assert staged["engines"] == alone[1]["engines"], "what is planned is not the fullest stage"
    done = plan(*small[:-1], "--set", f"train.stages={json.dumps(stages)}", "--price", 2)
    hours = sum(s["steps"] * r["step_seconds"] for s, r in zip(stages, rows, strict=True)) / 3600
    assert f"in {hours:,.3g} hours" in done.out and "1,000 steps" in done.out


def set_to(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def test_only_settings_that_a_run_accepts_are_compared(plan):
    one = ("--nodes", 1, "--gpus-per-node", 1)
    measured = set_to("log.noise_every=5", "train.global_batch_size=8", "train.micro_batch_size=1")
    done = plan(*one, *measured)
    assert done.status == 0, done
    assert "cheapest that fits: fsdp" not in done.out and "train.micro_batch_size=8" not in done.out
    offloaded = set_to(
        "parallel.engine=deepspeed",
        "parallel.zero_stage=3",
        "parallel.offload=parameters",
        "parallel.offload_dir=/scratch",
    )
    done = plan(*offloaded)
    assert done.status == 0 and "cheapest that fits: fsdp" in done.out, done
    assert "parallel.offload_dir=" in done.out.split("cheapest that fits")[1]


def test_an_engine_that_the_search_alone_tries_ends_no_plan(plan):
    cut = ('model.layers=["gam_delta"]', "model.position=none", "parallel.context=16")
    done = plan(*set_to(*cut, "parallel.engine=fsdp", "parallel.reshard_after_forward=false"))
    assert done.status == 0, done
    assert [line for line in done.out.splitlines() if line.startswith("*fsdp kept")]


def test_parameters_cut_over_all_ranks_are_the_row_fsdp(plan):
    done = plan(*set_to("parallel.engine=fsdp", "parallel.shard_ranks=16"))
    assert any(line.startswith("*fsdp ") for line in done.out.splitlines()), done


def test_plain_attention_is_planned_compiled(plan):
    """Torch makes symbols of some of its sizes."""
    attention = set_to('model.layers=["attention"]', "train.compile=on", "train.recompute=full")
    done = plan(*attention, *set_to("data.documents=concatenate"))
    assert done.status == 0, done
