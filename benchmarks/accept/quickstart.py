"""Check 7: the quickstart's commands as users type them; training is killed and resumed."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.accept.record import Check
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import read_json

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "def "


class Quickstart:
    """Folders, sizes and command of one run of the quickstart."""

    def __init__(self, check: Check) -> None:
        self.check = check
        self.data, self.run = check.folder / "data", check.folder / "run"
        self.steps, self.saves, self.killed = check.pick((600, 100, 250), (60, 10, 25))

    def command(self) -> list[str]:
        """Return the command that trains, under DeepSpeed's launcher."""
        settings = {
            "data.sets": json.dumps([{"path": str(self.data)}]),
            "log.run_dir": self.run,
            "log.every_steps": 1,
            "log.wandb": "off",
            "train.steps": self.steps,
            "checkpoint.every_steps": self.saves,
            "eval.every_steps": 0,
            "eval.max_tokens": 8192,
            "parallel.device": self.check.device.type,
        }
        if self.check.small:
            settings |= {"model.d_model": 32, "model.gam.n_slots": 16, "data.seq_len": 64}
        words = [*launcher(), "--quiet", "--num_gpus", "1", "tools/pretrain.py"]
        words += ["--config", "configs/quickstart.json"]
        return [*words, *(w for key, v in settings.items() for w in ("--set", f"{key}={v}"))]

    def lines(self) -> list[dict]:
        """Return the lines of metrics.jsonl that are written so far."""
        with suppress(Exception):  # none yet, or half a line
            return read_metrics(self.run / "metrics.jsonl")
        return []


def launcher() -> list[str]:
    """Return the deepspeed command of this Python."""
    beside = Path(sys.executable).parent / "deepspeed"
    launcher = str(beside) if beside.exists() else shutil.which("deepspeed")
    return [launcher] if launcher else [sys.executable, "-m", "deepspeed.launcher.runner"]


def call(check: Check, *words: object) -> str:
    """Run a command that has to succeed, and return what it prints."""
    done = subprocess.run(
        [*map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=max(5.0, check.seconds_left - 2),
    )
    print(done.stdout, flush=True)
    if done.returncode:
        raise RuntimeError(f"{words[1]} ended with {done.returncode}: {done.stdout[-800:]}")
    return done.stdout


def prepare(check: Check) -> None:
    """Prepare the standard library's source, which every machine with Python has."""
    quick, begun = Quickstart(check), time.monotonic()
    few = check.pick((), ("--max-documents", 200))
    vocabulary = check.pick(4096, 400)
    command = [sys.executable, "tools/prepare_data.py", "--train", "python-stdlib", "--overwrite"]
    call(check, *command, "--vocab-size", vocabulary, "--out", quick.data, *few)
    check.figure("preparing the data", time.monotonic() - begun, "s")


def killed(check: Check) -> None:
    """Kill launcher and rank together by SIGKILL in the middle of the run."""
    quick, begun = Quickstart(check), time.monotonic()
    shutil.rmtree(quick.run, ignore_errors=True)
    process = psutil.Popen(quick.command(), cwd=ROOT)
    try:
        while len(quick.lines()) < quick.killed:
            if process.poll() is not None:
                raise RuntimeError(f"training ended with {process.returncode} before it was killed")
            time.sleep(0.02)
        check.figure("to the step at which it is killed", time.monotonic() - begun, "s")
    finally:
        started = process.children(recursive=True) if process.is_running() else []
        for each in [*reversed(started), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
    check.figure("last step before", quick.lines()[-1]["step"], at_most=quick.steps - 1)


def resumed(check: Check) -> None:
    """Run the same command again: it must resume, and repeat the losses of steps done before."""
    quick, begun = Quickstart(check), time.monotonic()
    before = {line["step"]: line["loss"] for line in quick.lines()}
    said = call(check, *quick.command())
    check.figure("the rest of the run", time.monotonic() - begun, "s")
    place = said.find("resuming from")
    check.note("said", said[place:].splitlines()[0] if place >= 0 else "nothing of resuming")
    lines = quick.lines()
    steps = [line["step"] for line in lines]
    check.figure("steps logged, each once", len(set(steps)), at_least=quick.steps)
    off = max(abs(line["loss"] - before.get(line["step"], line["loss"])) for line in lines)
    # Atomic additions sum up in any order on a GPU; on a CPU every order is fixed.
    check.figure("largest difference of a loss computed twice", off, at_most=check.pick(0.05, 0.0))
    check.figure("last loss", lines[-1]["loss"], "nats", at_most=lines[0]["loss"] - 0.5)
    speeds = [line["tokens_per_s"] for line in lines if line["tokens_per_s"]]
    check.figure("median speed", statistics.median(speeds), "tokens/s")
    if place < 0:
        raise RuntimeError("the second start did not resume")


def evaluated(check: Check) -> None:
    """Check that tools/evaluate.py finds the loss that the run had at its end."""
    quick = Quickstart(check)
    report = check.folder / "evaluated.json"
    command = [sys.executable, "tools/evaluate.py", quick.run, "--device", check.device.type]
    call(check, *command, "--max-tokens", 8192, "--json", report)
    loss, at_end = read_json(report)["loss"], quick.lines()[-1]["val_loss"]
    check.figure("validation loss", loss, "nats")
    # The same tokens in other batches, which a GPU may multiply in another order.
    check.figure("off the run's own", abs(loss - at_end), "nats", at_most=1e-3)


def generated(check: Check) -> None:
    """Check that tools/generate.py continues a prompt, and that two greedy runs write the same."""
    quick, begun = Quickstart(check), time.monotonic()
    command = [sys.executable, "tools/generate.py", quick.run, PROMPT, "--device"]
    command += [check.device.type, "--max-tokens", "40", "--temperature", "0"]
    texts = [call(check, *command) for _ in range(2)]
    check.figure("seconds a call, start included", (time.monotonic() - begun) / 2, "s")
    check.note("text", texts[0])
    check.figure("characters", len(texts[0]), at_least=len(PROMPT) + 10)
    check.figure("the same twice", texts[0] == texts[1], at_least=1)


PARTS = {
    "prepare": prepare,
    "killed": killed,
    "resumed": resumed,
    "evaluate": evaluated,
    "generate": generated,
}
