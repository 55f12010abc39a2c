"""Training of small models, each with one memory, on synthetic tasks such as associative recall."""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from gam_scale.config import ModelConfig, RunConfig, TrainConfig
from gam_scale.data.order import derive_seed
from gam_scale.evaluate.interval import proportion
from gam_scale.evaluate.recall import (
    RecallConfig,
    RecallResult,
    RecallScore,
    right_answers,
    tasks_of,
    texts_of,
)
from gam_scale.evaluate.state_size import state_size
from gam_scale.model.lm import LanguageModel, build_model
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.world import World
from gam_scale.train.step import train_step

WARMUP = 0.1  # share of the steps
CHECKED = 128  # texts that one check of the accuracy reads


def train_recall(
    kind: str,
    recall: RecallConfig,
    model: ModelConfig,
    device: str | torch.device = "cpu",
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> RecallResult:
    """Train a model per learning rate on fresh texts, and test the best of them.

    The best model is chosen on separate texts, so the test texts do not influence the choice.
    """
    began = time.perf_counter()
    runs = []
    for lr in recall.lrs:
        net = build_model(model, recall.seed, device)
        if compiled:
            for block in net.blocks:
                block.compile()
        curve = _fit(net, recall, lr, partial(_log_of, f"{kind}, lr {lr:g}", log))
        runs.append((curve[-1][1], lr, net, curve))
    _, lr, net, curve = max(runs, key=lambda run: run[0])
    scores = []
    for task in tasks_of(recall, recall.test):
        seed = derive_seed(recall.seed, "test", task.seq_len, task.size)
        right = right_answers(net, recall, task, recall.test_texts, seed)
        accuracy = proportion(right, np.full(len(right), task.asked))
        scores.append(RecallScore(task, accuracy, recall.test_texts))
    seconds = time.perf_counter() - began
    parameters, state = net.n_parameters(), state_size(model)
    return RecallResult(kind, model, parameters, state, scores, lr, curve[-1][0], seconds, curve)


def _log_of(run: str, log: Callable[[str], None], line: str) -> None:
    log(f"{run}: {line}")


def _fit(
    net: LanguageModel, recall: RecallConfig, lr: float, log: Callable[[str], None]
) -> list[tuple[int, float]]:
    """Train ``net`` and return (step, accuracy) at each check.

    AdamW has linear warm-up, a cosine to 0, and no weight decay, since no text comes twice.
    """
    config = RunConfig(net.config, train=TrainConfig(lr=lr, weight_decay=0.0))
    optimizer = build_optimizer(net, config)
    device, curve = net.embedding.weight.device, []
    strategy = PlainStrategy(net, optimizer, World(0, 1, 0, 1, device), "fp32")
    warmup = max(1, round(WARMUP * recall.steps))
    tasks = tasks_of(recall, recall.train)
    hardest = max(tasks, key=lambda task: (task.size, task.seq_len))
    draws = np.random.default_rng(derive_seed(recall.seed, "tasks"))
    for step in range(recall.steps):
        share = (step - warmup) / max(1, recall.steps - warmup)
        scale = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * share))
        task = tasks[draws.integers(len(tasks))]
        batch = texts_of(recall, task, recall.batch_size, derive_seed(recall.seed, "train", step))
        net.train()
        loss_sum, n, _ = train_step(strategy, [batch], lr * scale)
        done = step + 1
        if done % recall.check_every == 0 or done == recall.steps:
            seed = derive_seed(recall.seed, "check")
            right = right_answers(net, recall, hardest, CHECKED, seed)
            accuracy = float(right.sum()) / (CHECKED * hardest.asked)
            curve.append((done, accuracy))
            log(f"step {done:,}, loss {float(loss_sum) / n:.3f}, accuracy {accuracy:.3f}")
            if accuracy >= recall.stop_at:
                break
    return curve
