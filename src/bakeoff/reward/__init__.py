"""What a completion is worth: the task's verifier, a user's functions, or a weighted sum of several.

A user function has the signature that TRL users know, `fn(prompts, completions, **columns) -> list[float]`;
the columns are `answer`, `completion_ids` and whatever columns the examples have.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bakeoff.batch import Rollout, Scores
from bakeoff.errors import UserError
from bakeoff.task import Task

VERIFIER = "verifier"


@dataclass
class Reward:
    """functions: weight by name, where a name is `verifier` or an import path `module.function`.

    missing_eos_penalty is subtracted from the total of a completion that does not end in time.
    """

    functions: dict[str, float] = field(default_factory=lambda: {VERIFIER: 1.0})
    missing_eos_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not self.functions:
            raise UserError("reward.functions is empty; it must name `verifier` or an import path, with a weight.")
        self._functions = {name: load(name) for name in self.functions if name != VERIFIER}

    def __call__(self, task: Task, rollout: Rollout) -> Scores:
        """Scores of a rollout on its device; raises UserError that names the function which failed."""
        examples = rollout.by_completion(rollout.examples)
        pairs = list(zip(rollout.completions, examples, strict=True))
        verified = checked(VERIFIER, [task.verify(text, example) for text, example in pairs], len(pairs))
        terms = {name: verified for name in self.functions if name == VERIFIER}
        if self._functions:
            columns = {key: [e.columns.get(key) for e in examples] for e in examples[:1] for key in e.columns}
            columns["answer"] = [example.answer for example in examples]
            ids, mask = rollout.sequences.completion_ids, rollout.sequences.mask
            columns["completion_ids"] = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
            prompts = rollout.by_completion(rollout.prompts)
            for name, function in self._functions.items():
                try:
                    scores = function(prompts=prompts, completions=rollout.completions, **columns)
                except Exception as error:
                    raise UserError(
                        f"reward.functions: {name} raised {type(error).__name__}: {error}; it must return a "
                        "list of numbers, one a completion."
                    ) from error
                terms[name] = checked(name, scores, len(pairs))
        total = torch.stack([weight * terms[name] for name, weight in self.functions.items()]).sum(0)
        device = rollout.ended.device
        total = total.to(device) - self.missing_eos_penalty * ~rollout.ended
        return Scores(total=total, exact=(verified >= 1.0).to(device), terms=terms)


def load(name: str) -> Callable[..., Sequence[float]]:
    """The function at an import path; raises UserError where there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        function: Callable[..., Sequence[float]] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"reward.functions names {name!r}, which cannot be imported ({error}); it must be `verifier` or "
            "an import path module.function."
        ) from error
    if not callable(function):
        raise UserError(f"reward.functions names {name!r}, which is a {type(function).__name__}, not a function.")
    return function


def checked(name: str, scores: Sequence[float], count: int) -> torch.Tensor:
    """Scores as a tensor [count]; raises UserError where the length is wrong or a number is not finite."""
    scores = list(scores)
    if len(scores) != count:
        raise UserError(f"reward.functions: {name} returned {len(scores)} scores for {count} completions.")
    for index, score in enumerate(scores):
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise UserError(
                f"reward.functions: {name} returned {score!r} for completion {index}; it must be a finite number."
            )
    return torch.tensor(scores, dtype=torch.float32)
