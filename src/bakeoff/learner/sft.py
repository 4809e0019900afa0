"""Supervised fine-tuning on demonstrations: the start of actor and reference, made once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from bakeoff.algorithm.step import Adam, Subproblem
from bakeoff.batch import Example
from bakeoff.config import Config, Sft, digest, plain
from bakeoff.errors import UserError
from bakeoff.model.forward import completion_logits, token_logprobs
from bakeoff.model.load import Policy, build, complete, save
from bakeoff.paths import cache
from bakeoff.randomness import stdlib_random
from bakeoff.task import Task

RECIPE = 2  # raise it when this file changes what it makes: kept starts of another recipe are not used


def starting_policy(config: Config, device: torch.device, show: Callable[[str], None]) -> Policy:
    """The policy that actor and reference start from, on `device`.

    Where there is a supervised stage, its result is kept under the hash of all that it depends on, so that
    the runs of a sweep make it once and start from the same bytes.
    """
    if config.sft.steps == 0:
        return _to(build(config.model, config.sft.seed), device)

    def make(folder: Path) -> None:
        policy = _to(build(config.model, config.sft.seed), device)
        train(policy, config.task, config.sft, show)
        save(policy, folder)

    key = digest({"recipe": RECIPE, **start_identity(config)})
    folder = made_once(cache() / "starts" / key, make)
    show(f"start {key} from {folder}")
    return _to(build(replace(config.model, name=str(folder))), device)


def start_identity(config: Config) -> dict[str, Any]:
    """What the start depends on: not how it is then trained."""
    identity = {key: plain(config)[key] for key in ("task", "model", "sft")}
    identity["model"] = {k: v for k, v in identity["model"].items() if k not in ("lora", "gradient_checkpointing")}
    return identity


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, filled by `make` if it is not there: whole or not at all, and by one process only."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            partial = Path(tempfile.mkdtemp(dir=folder.parent))
            make(partial)
            partial.rename(folder)
    return folder


def _to(policy: Policy, device: torch.device) -> Policy:
    policy.network.to(device).eval()
    return policy


def train(policy: Policy, task: Task, sft: Sft, show: Callable[[str], None]) -> None:
    """AdamW (weight decay 0.01) on the mean negative log-likelihood of the demonstrations' tokens, EOS included."""
    adam = Adam(lr=sft.lr, weight_decay=0.01)
    optimizer = adam.optimizer(policy.network.parameters())
    policy.network.train()
    for step in range(sft.steps):
        examples = task.training_examples(sft.batch, stdlib_random(sft.seed, "sft", step))
        loss = negative_log_likelihood(policy, task, examples)
        loss.backward()
        adam(Subproblem(optimizer))
        if step % 10 == 0 or step + 1 == sft.steps:
            show(f"supervised start: step {step + 1}/{sft.steps}, loss {loss.item():.3f}")
    policy.network.eval()


def negative_log_likelihood(policy: Policy, task: Task, examples: list[Example]) -> Tensor:
    """Mean over the tokens of the examples' demonstrations; raises UserError where the task has none."""
    texts = [task.demonstration(example) for example in examples]
    if None in texts:
        raise UserError("sft.steps is above 0, but the task has no demonstrations; it must be 0.")
    sequences = complete(policy, examples, [str(text) for text in texts], task.shot_examples())
    logprobs = token_logprobs(completion_logits(policy, sequences), sequences.completion_ids)
    return -torch.where(sequences.mask, logprobs, 0.0).sum() / sequences.mask.sum()
