"""What a completion is worth: the task's verifier, a learned model, a user's functions, or a weighted sum of several.

A user function has the signature that TRL users know, `fn(prompts, completions, **columns) -> list[float]`;
the columns are `answer`, `completion_ids` and whatever columns the examples have. A function of steps has the same
arguments and returns a list of (end, score) for each completion: the character before which a step ends, and its score.
An end beyond the text is the end of the completion, EOS: that is where a missing step is told.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bakeoff.batch import Rollout, Scores, Steps
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.task import Task

VERIFIER, LEARNED = "verifier", "learned"


@dataclass
class Reward:
    """functions: weight by name, where a name is `verifier`, `learned` or an import path `module.function`;
    steps: the same for functions of steps, where `verifier` is the task's own.

    missing_eos_penalty is subtracted from the score of a completion that does not end in time.
    """

    functions: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    missing_eos_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not self.functions and not self.steps:
            raise UserError(
                "reward.functions and reward.steps are empty; one of them must name `verifier`, `learned` (functions "
                "alone) or an import path, with a weight."
            )
        own = (VERIFIER, LEARNED)
        self._functions = {name: load(name, "reward.functions") for name in self.functions if name not in own}
        self._steps = {name: load(name, "reward.steps") for name in self.steps if name != VERIFIER}

    def __call__(self, task: Task, rollout: Rollout, learned: Callable[[Rollout], Tensor] | None = None) -> Scores:
        """Scores of a rollout on its device; raises UserError that names the function which failed.

        `learned` is the reward model, which is asked where `functions` names it. Everything is computed in the host's
        memory, where the other functions return their scores, and moved to the device once.
        """
        examples = rollout.by_completion(rollout.examples)
        pairs = list(zip(rollout.completions, examples, strict=True))
        verdicts = [task.verify(text, example) for text, example in pairs]
        verified = checked(VERIFIER, verdicts, len(pairs))
        given: dict[str, Tensor] = {VERIFIER: verified}
        if learned is not None:
            given[LEARNED] = learned(rollout).to(HOST)
        if self._functions:
            arguments = call_arguments(rollout)
            for name, function in self._functions.items():
                given[name] = checked(name, called(name, "reward.functions", function, arguments), len(pairs))
        terms = {name: given[name] for name in self.functions}
        outcome = sum((weight * terms[name] for name, weight in self.functions.items()), torch.zeros(len(pairs)))
        outcome = outcome - self.missing_eos_penalty * ~rollout.ended.to(HOST)
        found: list[Steps] = []
        for name, weight in self.steps.items():
            if name == VERIFIER:
                said = [task.verify_steps(text, example) for text, example in pairs]
            else:
                said = called(name, "reward.steps", self._steps[name], call_arguments(rollout))
            steps = located(name, said, rollout)
            terms[f"{name}_steps"] = torch.zeros(len(pairs)).index_add(0, steps.row, steps.score)
            found.append(replace(steps, score=weight * steps.score))
        true = torch.tensor([task.grade(*pair, score) for pair, score in zip(pairs, verdicts, strict=True)])
        scores = Scores(outcome, verified >= 1.0, true, terms, join_steps(found) if found else None)
        return scores.to(rollout.ended.device)


def call_arguments(rollout: Rollout) -> dict[str, Any]:
    """What a user's function is called with: prompts, completions and a column a key, a value a completion."""
    examples = rollout.by_completion(rollout.examples)
    columns: dict[str, Any] = {key: [e.columns.get(key) for e in examples] for e in examples[:1] for key in e.columns}
    columns["answer"] = [example.answer for example in examples]
    ids, mask = rollout.sequences.completion_ids, rollout.sequences.mask
    lengths = mask.sum(1).tolist()
    columns["completion_ids"] = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return {"prompts": rollout.by_completion(rollout.prompts), "completions": rollout.completions, **columns}


def called(name: str, key: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the function returns; raises UserError that names it where it raises."""
    try:
        return function(**arguments)
    except Exception as error:
        raise UserError(
            f"{key}: {name} raised {type(error).__name__}: {error}; it must return a list with an entry a completion."
        ) from error


def load(name: str, key: str) -> Callable[..., Any]:
    """The function at an import path, the folder of the command included; raises UserError where there is none."""
    if "" not in sys.path:  # `python -m` looks there, a console script does not
        sys.path.append("")
    module, _, attribute = name.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key} names {name!r}, which cannot be imported ({error}); it must be `verifier`, `learned` (functions "
            "alone) or an import path module.function."
        ) from error
    if not callable(function):
        raise UserError(f"{key} names {name!r}, which is a {type(function).__name__}, not a function.")
    return function


def checked(name: str, scores: Sequence[float], count: int) -> Tensor:
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


def located(name: str, said: list[list[tuple[int, float]]], rollout: Rollout) -> Steps:
    """Steps on the tokens that complete them, in the host's memory.

    An end beyond the text is the completion's last token. Raises UserError where the number of completions, an end or
    a score is impossible.
    """
    mask, ids = rollout.sequences.mask.to(HOST), rollout.sequences.completion_ids.to(HOST)
    if len(said) != len(mask):
        raise UserError(f"reward.steps: {name} returned steps of {len(said)} completions for {len(mask)}.")
    found: list[tuple[int, int, float]] = []
    for row, (steps, keep) in enumerate(zip(said, mask, strict=True)):
        tokens = ids[row].tolist()[: int(keep.sum())]
        lengths = [len(rollout.decode(tokens[:end])) for end in range(1, len(tokens) + 1)] if steps else []
        for end, score in steps:
            if end < 1 or not math.isfinite(score):
                raise UserError(
                    f"reward.steps: {name} returned the step ({end}, {score}) for completion {row}; a step ends after "
                    "at least one character and has a finite score."
                )
            token = next((index for index, length in enumerate(lengths) if length >= end), len(tokens) - 1)
            found.append((row, token, float(score)))
    table = torch.tensor(found, dtype=torch.float64).view(-1, 3)
    return Steps(table[:, 0].long(), table[:, 1].long(), table[:, 2].float())


def join_steps(parts: list[Steps]) -> Steps:
    """The steps that several functions found in the same completions."""
    return Steps(*(torch.cat([getattr(part, key) for part in parts]) for key in ("row", "token", "score")))
