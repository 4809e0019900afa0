"""Supervised fine-tuning on demonstrations: the start of actor and reference, made once and kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from bakeoff.algorithm.step import clipped_step
from bakeoff.batch import Example, Sequences
from bakeoff.config import Config, Sft, digest, plain
from bakeoff.errors import UserError
from bakeoff.model.forward import completion_logits, token_logprobs
from bakeoff.model.load import Policy, build, encode, save
from bakeoff.paths import cache
from bakeoff.randomness import stdlib_random
from bakeoff.task import Task

RECIPE = 1  # raise it when this file changes what it makes: kept starts of another recipe are not used


def starting_policy(config: Config, device: torch.device, show: Callable[[str], None]) -> Policy:
    """The policy that actor and reference start from, on `device`.

    Where there is a supervised stage, its result is kept under the hash of all that it depends on, so that
    the runs of a sweep make it once and start from the same bytes.
    """
    if config.sft.steps == 0:
        return _to(build(config.model, config.sft.seed), device)
    key = digest({"recipe": RECIPE, **{k: plain(config)[k] for k in ("task", "model", "sft")}})
    folder = cache() / "starts" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            policy = _to(build(config.model, config.sft.seed), device)
            train(policy, config.task, config.sft, show)
            partial = Path(tempfile.mkdtemp(dir=folder.parent))
            save(policy, partial)
            partial.rename(folder)
    show(f"start {key} from {folder}")
    return _to(build(replace(config.model, name=str(folder))), device)


def _to(policy: Policy, device: torch.device) -> Policy:
    policy.network.to(device).eval()
    return policy


def train(policy: Policy, task: Task, sft: Sft, show: Callable[[str], None]) -> None:
    """AdamW on the mean negative log-likelihood of the demonstrations' tokens, EOS included."""
    optimizer = torch.optim.AdamW(policy.network.parameters(), lr=sft.lr, foreach=True)
    policy.network.train()
    for step in range(sft.steps):
        examples = task.training_examples(sft.batch, stdlib_random(sft.seed, "sft", step))
        loss = negative_log_likelihood(policy, task, examples)
        loss.backward()
        clipped_step(optimizer, max_gradient_norm=1.0)
        if step % 10 == 0 or step + 1 == sft.steps:
            show(f"supervised start: step {step + 1}/{sft.steps}, loss {loss.item():.3f}")
    policy.network.eval()


def negative_log_likelihood(policy: Policy, task: Task, examples: list[Example]) -> Tensor:
    """Mean over the tokens of the examples' demonstrations; raises UserError where the task has none."""
    texts = [task.demonstration(example) for example in examples]
    if None in texts:
        raise UserError("sft.steps is above 0, but the task has no demonstrations; it must be 0.")
    prompts = encode(policy, examples, task.shot_examples())
    eos = policy.tokenizer.eos_token_id
    rows = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] for text in texts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=policy.device)
    lengths = torch.tensor([len(row) for row in rows], device=policy.device)
    mask = torch.arange(width, device=policy.device) < lengths[:, None]
    sequences = Sequences(torch.cat([prompts.ids, ids], 1), torch.cat([prompts.attention, mask], 1), mask)
    logprobs = token_logprobs(completion_logits(policy, sequences), ids)
    return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()
