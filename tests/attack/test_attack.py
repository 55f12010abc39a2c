"""Attack every file of a run and of a data set with damage, every setting and flag with any value.

In every case, a command line must do the same work as without the damage, or print one sentence and
exit with 2: no traceback, no hang, no success that means something else. ``--attacks N`` sets how
many cases of each kind are tried, every setting and flag at least once; ``--attack-seed`` which.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from attack.commands import Commands, Done, in_parallel
from attack.mutations import VALUES, WORDS, leaves, mutate_file, replaced
from conftest import sentences
from safetensors.torch import save_file

from gam_scale.checkpoint.load import load_trained
from gam_scale.interop import dump_official

COMPARED = ("step", "tokens", "loss", "lr", "grad_norm", "val_loss")
STEPS, MORE_STEPS = 4, 6


@dataclass(frozen=True)
class Workshop:
    """A run, its data and what else tools read, made once and copied for every case."""

    folder: Path
    commands: Commands

    def case(self, name: str) -> Path:
        """Make a folder: copies of ``run``, ``data``, ``given`` and ``config.json``, and a pipe."""
        folder = shutil.copytree(self.folder / "origin", self.folder / name)
        os.mkfifo(folder / "pipe")
        return folder


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, prepared_set) -> Workshop:
    folder = tmp_path_factory.mktemp("attack")
    origin = folder / "origin"
    shutil.copytree(prepared_set, origin / "data")
    (origin / "config.json").write_text(json.dumps(CONFIG))
    tools = Commands()
    done = tools.run(origin, "pretrain", "--config", "config.json")
    assert done.status == 0, done
    make_given(origin, tools)
    return Workshop(folder, tools)


def make_given(origin: Path, tools: Commands) -> None:
    """Make the folder ``given``: files that users bring, their own or from other programs."""
    given = origin / "given"
    given.mkdir()
    done = tools.run(
        origin, "convert_checkpoint", "export", "run", "--to", "hf", "--out", "given/hf"
    )
    assert done.status == 0, done
    model = load_trained(origin / "run").model
    weights = {name: tensor.clone() for name, tensor in dump_official(model).items()}
    torch.save(weights, given / "weights.pt")
    save_file(weights, given / "weights.safetensors")
    for name, parameter in model.named_parameters():
        folder = given / "universal" / "zero" / name
        folder.mkdir(parents=True)
        torch.save({"param": parameter.detach()}, folder / "fp32.pt")
        torch.save(torch.tensor(7.0), folder / "step.pt")
    (given / "text.txt").write_text(sentences(0, 300))
    rows = [{"text": sentences(i, 9), "more": [i]} for i in range(30)]
    (given / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = Path(__file__).resolve().parents[2]
    sweep = json.loads((root / "configs" / "sweeps" / "small.json").read_text())
    (given / "sweep.json").write_text(json.dumps(sweep | {"data": "data"}))
    (given / "runs.csv").write_text("\n".join(csv_rows()) + "\n")


def csv_rows() -> Iterator[str]:
    """Yield the lines of a sweep's results, whose losses follow a law exactly."""
    yield "params,tokens,loss,flops,family"
    for params in (1e5, 2e5, 4e5, 8e5, 1.6e6):
        for tokens in (1e6, 2e6, 4e6, 8e6):
            loss = 1.7 + 100 * params**-0.34 + 100 * tokens**-0.28
            yield f"{params:.0f},{tokens:.0f},{loss},{6 * params * tokens},gam"


CONFIG = {
    "model": {"d_model": 16, "n_layers": 1, "max_seq_len": 48, "gam": {"n_slots": 4}},
    "data": {"sets": [{"path": "data"}], "seq_len": 48},
    "train": {
        "steps": STEPS,
        "global_batch_size": 2,
        "warmup_steps": 1,
        "schedule": "constant",
        "compile": "off",
    },
    "parallel": {"engine": "torch", "device": "cpu"},
    "eval": {"every_steps": 2, "max_tokens": 100},
    "checkpoint": {"every_steps": 2, "keep_last": 2},
    "log": {"run_dir": "run", "every_steps": 1, "wandb": "off", "tensorboard": False},
}
RESUME = ("pretrain", "--config", "config.json", "--set", f"train.steps={MORE_STEPS}")
ANEW = ("pretrain", "--config", "config.json", "--set", "log.run_dir=new")
GENERATE = ("generate", "run", "the cat", "--max-tokens", "8", "--seed", "1")
TO_SET = ("--valid-fraction", "0", "--workers", "1", "--out", "prepared")
EVALUATE = ("evaluate", "run", "--max-tokens", "200", "--json")
READ_RUN = (
    *(RESUME, RESUME, GENERATE, EVALUATE),
    ("evaluate", "run", "--by-position", "--json"),
    ("launch", "--status", "run"),
    ("plot_runs", "run", "--out", "plot.png"),
    ("report", "run"),
    ("convert_checkpoint", "export", "run", "--to", "hf", "--out", "hf"),
)
READ_DATA = (ANEW, ANEW, EVALUATE, RESUME)
IMPORT = (
    "convert_checkpoint",
    "import",
    "--out",
    "imported",
    "--tokenizer",
    "data/tokenizer.model",
)
REPORT = (
    *("scaling_report", "--csv", "given/runs.csv", "--out", "report"),
    *("--bootstrap", "0", "--test-draws", "0"),
)
READ_GIVEN = {
    "hf": (*IMPORT, "--from", "hf", "given/hf"),
    "weights.pt": (*IMPORT, "--from", "official", "given/weights.pt"),
    "weights.safetensors": (*IMPORT, "--from", "official", "given/weights.safetensors"),
    "universal": (
        *(*IMPORT, "--from", "universal", "given/universal"),
        *("--config", "config.json"),
    ),
    "text.txt": ("prepare_data", "--train", "given/text.txt", "--vocab-size", "300", *TO_SET),
    "rows.jsonl": ("prepare_data", "--train", "given/rows.jsonl", "--vocab-size", "300", *TO_SET),
    "sweep.json": ("sweep", "plan", "--sweep", "given/sweep.json", "--out", "sweep"),
    "runs.csv": REPORT,
}
"""The command line that reads each entry of the folder ``given``."""


def curve(run: Path) -> list[dict]:
    """Return a run's logged lines, without the values that depend on the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: line.get(key) for key in COMPARED} for line in lines]


def meaning(folder: Path, command: tuple[str, ...], done: Done) -> object:
    """Return what a successful command line has done, in a form that is equal for equal work."""
    if command == RESUME:
        return curve(folder / "run")[-(MORE_STEPS - STEPS) :]
    if command == ANEW:
        return curve(folder / "new")
    if command[0] in ("generate", "evaluate"):
        return re.sub(r'"seconds": [\d.e-]+|"tokens_per_s": [\d.e-]+', "", done.out)
    return None


def run_file_attacks(
    workshop: Workshop,
    part: str,
    readers: Callable[[Path], Sequence[tuple[str, ...]]],
    n_attacks: int,
    seed: int,
) -> list[str]:
    """Damage files below ``part`` in copies; return a report of each case, empty if it ended well.

    ``readers(file)`` are the command lines of which one then runs.
    """
    origin = workshop.folder / "origin" / part
    files = sorted(path.relative_to(origin) for path in origin.rglob("*") if path.is_file())
    wanted = {}
    for command in {command for file in files for command in readers(file)}:
        folder = workshop.case(f"{part}-undamaged-{len(wanted)}")
        done = workshop.commands.run(folder, *command)
        assert done.status == 0, (command, done)
        wanted[command] = meaning(folder, command, done)

    def attack(number: int) -> str:
        rng = Random(f"{part} {seed} {number}")
        file = files[number % len(files)]
        command = rng.choice(readers(file))
        folder = workshop.case(f"{part}-{seed}-{number}")
        how = mutate_file(folder / part / file, rng)
        done = workshop.commands.run(folder, *command, as_anybody=True)
        fault = done.fault
        # A damaged .jsonl may change the very lines that are compared.
        if not fault and done.status == 0 and file.suffix != ".jsonl":
            now = meaning(folder, command, done)
            fault = "" if now == wanted[command] else "success with another meaning"
        shutil.rmtree(folder)
        return fault and _report(number, f"{part}/{file}: {how}", command, fault, done)

    return in_parallel(attack, range(n_attacks))


def _report(number: int, what: str, command: tuple[str, ...], fault: str, done: Done) -> str:
    typed = " ".join(f"{word:.60}" for word in command)
    return f"case {number}: {fault} | {what} | {typed}\n{done.err[-900:]}"


def check(kind: str, reports: list[str]) -> None:
    """Fail with the reports of all cases that did not end well."""
    bad = [text for text in reports if text]
    if bad:
        summary = f"{kind}: {len(bad)} of {len(reports)} cases end as none may"
        pytest.fail("\n".join([summary, *bad]), pytrace=False)


def test_any_file_of_a_run_directory_damaged(workshop, n_attacks, attack_seed):
    reports = run_file_attacks(workshop, "run", lambda _: READ_RUN, n_attacks, attack_seed)
    check("a damaged file of a run directory", reports)


def test_any_file_of_a_data_set_damaged(workshop, n_attacks, attack_seed):
    reports = run_file_attacks(workshop, "data", lambda _: READ_DATA, n_attacks, attack_seed)
    check("a damaged file of a data set", reports)


def test_anything_that_people_bring_damaged(workshop, n_attacks, attack_seed):
    def readers(file: Path) -> list[tuple[str, ...]]:
        return [READ_GIVEN[file.parts[0]]]

    reports = run_file_attacks(workshop, "given", readers, n_attacks, attack_seed)
    check("a damaged file that people bring", reports)


def test_any_value_of_a_config(workshop, n_attacks, attack_seed):
    complete = json.loads((workshop.folder / "origin" / "run" / "config.json").read_text())
    complete["train"]["steps"] = 1
    places = [place for place in leaves(complete) if place]
    Random(attack_seed).shuffle(places)

    def attack(number: int) -> str:
        rng = Random(f"config {attack_seed} {number}")
        place, new = places[number % len(places)], rng.choice(VALUES)
        folder = workshop.case(f"config-{attack_seed}-{number}")
        shutil.rmtree(folder / "run")
        (folder / "config.json").write_text(json.dumps(replaced(complete, place, new)))
        command = rng.choice([("pretrain", "--config", "config.json")] * 3 + [PLAN])
        done = workshop.commands.run(folder, *command)
        fault = done.fault
        if not fault and (folder / "run" / "config.json").exists():
            written = json.loads((folder / "run" / "config.json").read_text())
            fault = _what_was_written(done, written, place, new)
        shutil.rmtree(folder)
        what = f"{'.'.join(map(str, place))}={new!r:.60}"
        return fault and _report(number, what, command, fault, done)

    check("any value of a config", in_parallel(attack, range(max(n_attacks, len(places)))))


def _what_was_written(done: Done, config: dict, place: tuple, asked: object) -> str:
    """Return what is wrong with a run's config.json, if ``asked`` was given at ``place``."""
    if done.status == 2:
        return "refused after the run directory was made"
    for key in place:
        config = config[key]
    filled_in = place[-1] in ("vocab_size", "steps", "epochs") and asked == 0
    same = config == asked or isinstance(asked, dict)  # a section takes its defaults
    return "" if filled_in or same else f"success with {config!r:.60} instead"


PLAN = ("plan", "--config", "config.json", "--nodes", "1", "--gpus-per-node", "1", "--gpu", "h100")
TOOLS: dict[str, tuple[str, ...]] = {
    "pretrain": ANEW,
    "generate": GENERATE,
    "evaluate": EVALUATE,
    "plan": PLAN,
    "convert_checkpoint": ("convert_checkpoint", "export", "run", "--to", "hf", "--out", "hf"),
    "launch": ("launch", "--config", "config.json", "--dry-run"),
    "plot_runs": ("plot_runs", "run", "--out", "plot.png"),
    "prepare_data": (
        *("prepare_data", "--train", "given/text.txt", "--vocab-size", "300", *TO_SET),
    ),
    "sweep": ("sweep", "plan", "--sweep", "given/sweep.json", "--out", "sweep"),
    "scaling_report": REPORT,
    "reproduce_paper": ("reproduce_paper", "--table", "1", "--wikitext2", "none", "--out", "paper"),
}
"""A command line of every tool, for a case's folder: all succeed but the last, which is refused."""
SUBCOMMANDS = {"convert_checkpoint": 1}
"""The number of words between a tool's name and its flags."""


def flags(workshop: Workshop, tool: str) -> list[str]:
    """Return the flags that a tool's own help lists."""
    words = TOOLS[tool][1 : 1 + SUBCOMMANDS.get(tool, 0)]
    text = workshop.commands.run(workshop.folder, tool, *words, "--help").out
    return sorted(set(re.findall(r"^ +(?:-\w, )?(--[a-z][\w-]*)", text, re.MULTILINE)) - {"--help"})


def with_flag(command: tuple[str, ...], flag: str, word: str) -> tuple[str, ...]:
    """Return a command line in which ``flag`` has the value ``word``, replaced or added."""
    if flag in command:
        place = command.index(flag) + 1
        return (*command[:place], word, *command[place + 1 :])
    return (*command, flag, word)


def test_any_value_of_any_flag(workshop, n_attacks, attack_seed):
    every = [(tool, flag) for tool in TOOLS for flag in flags(workshop, tool)]
    assert len(every) > 80, every
    Random(attack_seed).shuffle(every)

    def attack(number: int) -> str:
        rng = Random(f"flags {attack_seed} {number}")
        tool, flag = every[number % len(every)]
        folder = workshop.case(f"flag-{attack_seed}-{number}")
        command = with_flag(TOOLS[tool], flag, rng.choice(WORDS))
        done = workshop.commands.run(folder, *command)
        shutil.rmtree(folder)
        return done.fault and _report(number, f"{tool} {flag}", command, done.fault, done)

    check("any value of any flag", in_parallel(attack, range(max(n_attacks, len(every)))))


def test_every_tool_works_without_an_attack(workshop):
    folder = workshop.case("no-attack")
    for tool, command in TOOLS.items():
        done = workshop.commands.run(folder, *command)
        wanted = 2 if tool == "reproduce_paper" else 0
        assert done.status == wanted, (command, done)
