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

from bakeoff.algorithm.step import Adam, Subproblem, require_finite
from bakeoff.attribution import Label, attributed
from bakeoff.batch import Example, Sequences
from bakeoff.config import Config, digest, plain
from bakeoff.errors import UserError
from bakeoff.measure.phase import Phases
from bakeoff.model.load import Policy, build, complete, save
from bakeoff.model.logprobs import completion_logprobs
from bakeoff.paths import cache
from bakeoff.randomness import stdlib_random
from bakeoff.task import Task

RECIPE = 3  # raise it when this file changes what it makes: kept starts of another recipe are not used


def starting_policy(config: Config, phases: Phases, show: Callable[[str], None]) -> Policy:
    """The policy that actor and reference start from, on the device of the phases.

    Where there is a supervised stage, its result is kept under the hash of all that it depends on, so that
    the runs of a sweep make it once and start from the same bytes.
    """
    device = phases.device
    if config.sft.steps == 0:
        return _to(build(config.model, config.sft.seed), device)

    def make(folder: Path) -> None:
        policy = _to(build(config.model, config.sft.seed), device)
        train(policy, config, phases, show)
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


def train(policy: Policy, config: Config, phases: Phases, show: Callable[[str], None]) -> None:
    """AdamW (weight decay 0.01) on the mean negative log-likelihood of the demonstrations' tokens, EOS included.

    A ledger follows the first two steps, the second of which has optimiser state.
    """
    sft, network = config.sft, policy.network
    adam = Adam(lr=sft.lr, weight_decay=0.01)
    optimizer = adam.optimizer(network.parameters())

    def steps(first: int, last: int) -> None:
        for step in range(first, min(last, sft.steps)):
            examples = config.task.training_examples(sft.batch, stdlib_random(sft.seed, "sft", step))
            sequences = demonstrations(policy, config.task, examples)
            with phases("sft"):
                loss = train_step(policy, sequences, adam, optimizer, config.logits_mb)
            if step % 10 == 0 or step + 1 == sft.steps:
                show(f"supervised start: step {step + 1}/{sft.steps}, loss {loss.item():.3f}")

    network.train()
    with phases.following(held_weights(policy), policy.embedding):
        steps(0, 2)
    steps(2, sft.steps)
    network.eval()
    with phases("sft"), torch.no_grad():  # what is kept must be good: the guard on the gradient stands before a step
        examples = config.task.training_examples(sft.batch, stdlib_random(sft.seed, "sft", sft.steps - 1))
        sequences = demonstrations(policy, config.task, examples)
        logprobs = completion_logprobs(policy, sequences, 1.0, config.logits_mb)
        require_finite(torch.where(sequences.mask, logprobs, 0.0), "a log-probability of the policy after the step")


def held_weights(policy: Policy) -> list[tuple[Tensor, Label]]:
    """What the stage holds besides its optimiser's state, as the ledger counts it: the actor's weights."""
    network = policy.network
    return [(tensor, Label("actor", "parameters")) for tensor in (*network.parameters(), *network.buffers())]


def train_step(
    policy: Policy, sequences: Sequences, adam: Adam, optimizer: torch.optim.Optimizer, logits_mb: float
) -> Tensor:
    """One step on the mean negative log-likelihood of the completions' tokens; returns it."""
    with attributed("actor", "activations"):
        logprobs = completion_logprobs(policy, sequences, 1.0, logits_mb)
        loss = -torch.where(sequences.mask, logprobs, 0.0).sum() / sequences.mask.sum()
        loss.backward()
        with attributed(kind="optimizer"):
            adam(Subproblem(optimizer))
    return loss.detach()


def demonstrations(policy: Policy, task: Task, examples: list[Example]) -> Sequences:
    """The examples with the task's demonstrations; raises UserError where it has none."""
    texts = [task.demonstration(example) for example in examples]
    if None in texts:
        raise UserError("sft.steps is above 0, but the task has no demonstrations; it must be 0.")
    return complete(policy, examples, [str(text) for text in texts], task.shot_examples())
