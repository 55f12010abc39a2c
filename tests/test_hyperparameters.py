"""Settings that are "auto": the rules, what a run keeps of them, what is refused."""

import json
import math

import pytest
from whole_runs import killed_after, train

from gam_scale import hyperparameters as rules
from gam_scale.config import RunConfig
from gam_scale.config.rules import check
from gam_scale.errors import UserError
from gam_scale.hyperparameters import choose, with_chosen
from gam_scale.run.report import write_report
from gam_scale.run.settings import differences
from gam_scale.strict import from_dict

ALL = ("global_batch_size", "beta2", "lr", "warmup_steps", "weight_decay")


def config(width: int = 256, seq_len: int = 1024, **changes: object) -> RunConfig:
    model = {"d_model": width, "n_layers": 2, "vocab_size": 1000, "position": "none"}
    train = {"steps": 1000, "global_batch_size": 8} | changes
    data = {"seq_len": seq_len, "sets": [{"path": "some"}]}
    return from_dict(RunConfig, {"model": model, "data": data, "train": train})


def chosen(name: str, **changes: object) -> float:
    return choose(config(**({name: "auto"} | changes))).settings[name]


@pytest.mark.parametrize(
    ("width", "batch_tokens", "tokens", "best", "within"),
    [
        (16, 1024, 1.5e6, 0.014, 1.1),
        (64, 4096, 4.1e6, 0.006, 1.1),
        (256, 8192, 1.5e6, 0.0028, 1.2),
        (2048, 442_000, 20e9, 0.001, 1.5),  # arXiv 2503.04715
    ],
)
def test_the_rate_is_near_what_was_best_in_tuned_runs(width, batch_tokens, tokens, best, within):
    batch, steps = round(batch_tokens / 256), round(tokens / batch_tokens)
    rate = chosen("lr", width=width, seq_len=256, steps=steps, global_batch_size=batch)
    assert 1 / within < rate / best < within


def test_the_rate_follows_its_sources():
    def rate(**changes: object) -> float:
        return chosen("lr", **changes)

    # Rates are rounded to three digits.
    assert rate(width=512) / rate(width=256) == pytest.approx(1 / 2, rel=0.01)
    assert rate(steps=4000) / rate(steps=1000) == pytest.approx(4**-0.125, rel=0.01)
    more = {"global_batch_size": 16, "steps": 500}  # the same tokens
    assert rate(**more) / rate() == pytest.approx(math.sqrt(2), rel=0.01)
    huge = {"global_batch_size": 50, "steps": 160}, {"global_batch_size": 100, "steps": 80}
    assert rate(**huge[0]) == rate(**huge[1]), "both are beyond the critical batch"
    large = {"global_batch_size": 20, "steps": 400}  # 20,480 of 8.2M tokens; 31,700 is critical
    assert rate(**huge[0]) / rate(**large) == pytest.approx(math.sqrt(31_700 / 20_480), rel=0.01)


@pytest.mark.parametrize("parameters", [85e6, 1.2e9])
def test_the_critical_batch_by_tokens_is_that_by_size_where_both_grow(parameters):
    """arXiv 2410.21676 fits both, in sequences of 512: they meet at 20 tokens per parameter."""
    by_size = 512 * 93.2 * (parameters / 1e6) ** 0.47
    by_tokens = rules.CRITICAL * (20 * parameters) ** rules.CRITICAL_BY_TOKENS
    assert by_tokens == pytest.approx(by_size, rel=0.01)


def test_beta2_has_one_half_life_in_tokens():
    base, doubled = (
        chosen("beta2", global_batch_size=b, steps=s) for b, s in ((4, 3000), (8, 1500))
    )
    assert doubled == pytest.approx(base**2, abs=2e-4)
    assert chosen("beta2", global_batch_size=800, steps=15) == 0.9
    assert chosen("beta2", seq_len=16, global_batch_size=1, steps=10**6) == 0.999


def test_the_batch_is_the_published_one_for_the_tokens_that_it_makes():
    for steps in (500, 20_000):
        batch = chosen("global_batch_size", steps=steps, seq_len=64)
        published = 0.58 * (steps * batch * 64) ** 0.571 / 64
        # The batch is rounded to a power of two, and the tokens change with it.
        assert abs(math.log2(batch / published)) < 0.5
        assert math.log2(batch).is_integer()
    assert chosen("global_batch_size", steps=10) == 1


@pytest.mark.parametrize("steps", [300, 3000, 100_000])
def test_a_batch_that_was_chosen_decides_the_rest_as_one_that_was_given(steps):
    auto = {name: "auto" for name in ("lr", "beta2", "warmup_steps", "weight_decay")}
    found = choose(config(steps=steps, global_batch_size="auto", **auto))
    batch = found.settings["global_batch_size"]
    given = choose(config(steps=steps, global_batch_size=batch, **auto))
    assert found.settings == {"global_batch_size": batch, **given.settings}
    assert found.scale == given.scale


def test_warm_up_goes_by_size_between_its_bounds():
    assert chosen("warmup_steps", steps=500) == 50, "a tenth: 1.8M parameters are 220 steps"
    long = chosen("warmup_steps", steps=10_000)
    assert long == round(choose(config(lr="auto")).scale.parameters / 8192)
    assert chosen("warmup_steps", steps=200) == 40, "2 / (1 - 0.95)"
    assert chosen("warmup_steps", steps=60) == 15, "a quarter"
    assert chosen("warmup_steps", steps=200, beta2=0.9) == 20


def test_weights_are_an_average_of_a_share_of_the_run():
    parameters = choose(config(lr="auto")).scale.parameters
    decay = chosen("weight_decay", lr=1e-3, steps=10_000)
    share = 1.084 * (10_000 * 8192 / parameters) ** -0.527
    assert 1 / (1e-3 * decay) == pytest.approx(share * 10_000, rel=0.01)
    assert chosen("weight_decay", lr=1e-3, steps=10) == 1.0


def test_what_is_given_stays_and_decides_the_rest():
    given = with_chosen(config(lr=0.5, weight_decay="auto")).train
    assert (given.lr, given.beta2, given.warmup_steps) == (0.5, 0.95, 100)
    assert given.weight_decay < chosen("weight_decay", lr=1e-3)
    same = config()
    assert with_chosen(same) is same


def test_a_table_that_is_looked_up_counts_for_no_parameters():
    tied, own = (choose(config(lr="auto")), config(lr="auto"))
    own.model.tied_head = False
    assert choose(own).scale.parameters == tied.scale.parameters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lr": "Auto"}, 'train.lr is "Auto"; expected a number or "auto"'),
        ({"lr": None}, 'train.lr is null; expected a number or "auto"'),
        ({"lr": 0}, "train.lr is 0.0; expected more than 0"),
        ({"warmup_steps": 1.5}, "train.warmup_steps is 1.5; expected a whole number"),
        ({"steps": "auto"}, 'train.steps is "auto"; expected a whole number'),
    ],
)
def test_other_words_are_refused(changes, said):
    with pytest.raises(UserError) as caught:
        config(**changes)
    assert str(caught.value).startswith(said)


def test_what_cannot_be_chosen_is_refused():
    by_epochs = config(steps=0, epochs=2.0, lr="auto")
    assert choose(by_epochs, epoch_sequences=100).scale.tokens == 2 * 100 * 1024
    with pytest.raises(UserError, match=r"train\.lr is auto with train\.epochs, and the data"):
        choose(by_epochs)
    lanes = config(global_batch_size="auto")
    lanes.data.carry_state = True
    with pytest.raises(UserError, match=r"train\.global_batch_size auto; expected a number"):
        check(lanes)


def test_stages_count_with_the_tokens_that_they_have():
    stages = [{"steps": 600, "seq_len": 512, "global_batch_size": 4}, {"steps": 400}]
    its = choose(config(stages=stages, lr="auto"))
    assert its.scale.tokens == 600 * 512 * 4 + 400 * 1024 * 8
    with pytest.raises(UserError, match=r"train\.global_batch_size is auto beside train\.stages"):
        check(config(stages=stages, global_batch_size="auto"))


def test_a_run_says_what_was_chosen_and_keeps_it(tmp_path, tiny):
    def made(run: str, **changes: object) -> dict:
        every = dict.fromkeys(ALL, "auto") | {"schedule": "constant", "steps": 60} | changes
        at_once = {"background": False}
        return tiny(tmp_path / run, train=every, eval={"every_steps": 0}, checkpoint=at_once)

    def kept(run: str) -> list[dict]:
        folder = tmp_path / run
        settled = json.loads((folder / "config.json").read_text())["train"]
        note = json.loads((folder / "chosen.json").read_text())
        return [{name: settled[name] for name in ALL}, note["settings"]]

    with killed_after(7):
        train(made("run"))
    first = kept("run")
    assert first[0] == first[1]
    assert all(type(value) in (int, float) for value in first[0].values())
    said = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert said.count(f"train.lr {first[0]['lr']:g}") == 1 and "chosen for width 32" in said
    unresolved = from_dict(RunConfig, made("run"))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert not [key for key in differences(saved, unresolved) if key.startswith("train.")]
    train(made("run", steps=66))  # longer: a new run would get other numbers
    assert kept("run") == first
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["chosen"]["settings"] == first[1]
    assert "chosen for width 32" in write_report(tmp_path / "run").read_text()
    branch = made("branch", steps=70)
    branch["checkpoint"]["branch_of"] = str(tmp_path / "run")
    train(branch)
    assert kept("branch") == first, "a branch is its trunk up to there"
    train(made("run", steps=30), fresh=True)
    assert kept("run")[0] != first[0]


def test_a_start_that_saved_nothing_is_no_begun_run(tmp_path, tiny):
    def chosen(steps, lr="auto"):
        settings = {"lr": lr, "warmup_steps": "auto", "steps": steps}
        config = tiny(tmp_path / "run", train=settings, eval={"every_steps": 0})
        with killed_after(2):
            train(config)
        return json.loads((tmp_path / "run" / "config.json").read_text())["train"]

    trial = chosen(20)
    longer = chosen(4000)
    assert longer["lr"] < trial["lr"] and longer["warmup_steps"] > trial["warmup_steps"]
    assert chosen(20) == trial
    assert chosen(20, lr=1e-3)["lr"] == 1e-3


@pytest.mark.parametrize("source", ["continue_from", "init_from"])
def test_rules_for_random_weights_are_not_for_trained_ones(source):
    its = config(lr="auto", weight_decay=0.1, warmup_steps="auto")
    setattr(its.checkpoint, source, "runs/pretrained")
    with pytest.raises(
        UserError, match=rf"train\.lr is auto beside checkpoint\.{source}; expected"
    ):
        choose(its)
    its = config(lr=1e-3, weight_decay="auto")
    setattr(its.checkpoint, source, "runs/pretrained")
    with pytest.raises(UserError, match=r"train\.weight_decay is auto beside"):
        choose(its)
    its = config(lr=1e-3, weight_decay=0.1, warmup_steps="auto")
    setattr(its.checkpoint, source, "runs/pretrained")
    assert set(choose(its).settings) == {"warmup_steps"}
