"""Score of a completion: the task's verifier, a learned model, a user's functions, or a weighted sum of several.

A user function has the signature that TRL users know, `fn(prompts, completions, **columns) -> list[float]`; the columns
are `answer`, `completion_ids` and the columns of the examples. A function that scores steps takes the same arguments
and returns a list of (end, score) for each completion, where `end` is the number of characters up to the end of the
step. An `end` past the text means the EOS token; use it to score missing steps.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bakeoff.batch import Rollout, Scores, StepRewards
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.ranges import VAST, number
from bakeoff.rows import to_device
from bakeoff.task.task import Task

Steps = list[tuple[int, float]]


@dataclass
class Completed:
    """A rollout with what a reward of ours may read.

    verdicts   the verifier's score of each completion
    learned    the reward model as a function of rollouts; none where no reward is learned
    """

    task: Task
    rollout: Rollout
    verdicts: list[float]
    learned: Callable[[Rollout], Tensor] | None


def verifier(completed: Completed) -> Sequence[float]:
    """The task's own verifier."""
    return completed.verdicts


def learned(completed: Completed) -> Sequence[float]:
    """The reward model."""
    assert completed.learned is not None, "the reward model was not trained"
    scores: list[float] = completed.learned(completed.rollout).tolist()
    return scores


def verified_steps(completed: Completed) -> list[Steps]:
    """The task's own scores of steps."""
    rollout = completed.rollout
    pairs = zip(rollout.completions, rollout.examples, strict=True)
    return [completed.task.verify_steps(text, example) for text, example in pairs]


REWARDS: dict[str, Callable[[Completed], Sequence[float]]] = {"verifier": verifier, "learned": learned}
PROCESS_REWARDS: dict[str, Callable[[Completed], list[Steps]]] = {"verifier": verified_steps}


@dataclass
class Reward:
    """Weighted sum of reward functions.

    functions             weight by name; a name is one of REWARDS or an import path `module.function`
    process               the same for functions that score steps; names of ours are those of PROCESS_REWARDS
    missing_eos_penalty   subtracted from the score of a completion that does not end within its budget
    """

    functions: dict[str, float] = number(dict, least=-VAST, most=VAST)
    process: dict[str, float] = number(dict, least=-VAST, most=VAST)
    missing_eos_penalty: float = number(0.0, least=0, most=VAST, unit="score")

    def __post_init__(self) -> None:
        if not self.functions and not self.process:
            raise UserError(
                "reward.functions and reward.process are empty; one of them must name a reward, with a weight: "
                f"{', '.join(REWARDS)} or an import path."
            )
        self._functions = {name: find(name, REWARDS, "reward.functions") for name in self.functions}
        self._process = {name: find(name, PROCESS_REWARDS, "reward.process") for name in self.process}

    @property
    def is_learned(self) -> bool:
        """Whether it needs a reward model."""
        return "learned" in self.functions

    @property
    def verifies_steps(self) -> bool:
        """Whether it needs the task's own scores of steps."""
        return "verifier" in self.process

    def __call__(self, task: Task, rollout: Rollout, learned: Callable[[Rollout], Tensor] | None = None) -> Scores:
        """Scores of a rollout on its device; raises UserError that names the function which failed.

        `learned` is the reward model. Scores are computed in the host's memory and moved to the device once.
        """
        pairs = list(zip(rollout.completions, rollout.examples, strict=True))
        verdicts = [task.verify(text, example) for text, example in pairs]
        completed = Completed(task, rollout, verdicts, learned)
        terms = {name: checked(name, function(completed), len(pairs)) for name, function in self._functions.items()}
        outcome = sum((weight * terms[name] for name, weight in self.functions.items()), torch.zeros(len(pairs)))
        outcome = outcome - self.missing_eos_penalty * ~rollout.ended.to(HOST)
        found: list[StepRewards] = []
        for name, function in self._process.items():
            steps = to_token_steps(name, function(completed), rollout)
            terms[f"{name}_steps"] = torch.zeros(len(pairs)).index_add(0, steps.row, steps.score)
            found.append(replace(steps, score=self.process[name] * steps.score))
        true = torch.tensor([task.grade(*pair, score) for pair, score in zip(pairs, verdicts, strict=True)])
        exact = checked("verifier", verdicts, len(pairs)) >= 1.0
        return to_device(Scores(outcome, exact, true, terms, merged(found)), rollout.ended.device)


def find(name: str, ours: dict[str, Callable[[Completed], Any]], key: str) -> Callable[[Completed], Any]:
    """The reward of that name: ours, or the user's function at that import path."""
    if name in ours:
        return ours[name]
    function = load(name, key, ours)
    return lambda completed: call(name, key, function, completed.rollout)


def call(name: str, key: str, function: Callable[..., Any], rollout: Rollout) -> Any:
    """Return value of a user's function; raises UserError that names the function where it raises."""
    try:
        return function(**call_arguments(rollout))
    except Exception as error:
        raise UserError(
            f"{key}: {name} raised {type(error).__name__}: {error}; it must return a list with one entry per "
            "completion."
        ) from error


def call_arguments(rollout: Rollout) -> dict[str, Any]:
    """Keyword arguments of a user's function: prompts, completions and columns, each a list over completions."""
    examples = rollout.examples
    columns: dict[str, Any] = {key: [e.columns.get(key) for e in examples] for e in examples[:1] for key in e.columns}
    columns["answer"] = [example.answer for example in examples]
    ids, mask = rollout.sequences.completion_ids, rollout.sequences.mask
    lengths = mask.sum(1).tolist()
    columns["completion_ids"] = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return {"prompts": rollout.prompts, "completions": rollout.completions, **columns}


def load(name: str, key: str, ours: dict[str, Any]) -> Callable[..., Any]:
    """The function at an import path, in the current folder too; raises UserError where there is none."""
    if "" not in sys.path:  # `python -m` looks there, a console script does not
        sys.path.append("")
    module, _, attribute = name.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key} names {name!r}, which cannot be imported ({error}); it must be one of {', '.join(ours)}, or an "
            "import path module.function."
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


def to_token_steps(name: str, said: list[Steps], rollout: Rollout) -> StepRewards:
    """Step scores on the tokens that end the steps, in the host's memory.

    An end past the text is the completion's last token. Raises UserError where the number of completions, an end or a
    score is impossible.
    """
    mask, ids = rollout.sequences.mask.to(HOST), rollout.sequences.completion_ids.to(HOST)
    if len(said) != len(mask):
        raise UserError(f"reward.process: {name} returned steps of {len(said)} completions for {len(mask)}.")
    found: list[tuple[int, int, float]] = []
    for row, (steps, keep) in enumerate(zip(said, mask, strict=True)):
        tokens = ids[row].tolist()[: int(keep.sum())]
        lengths = [len(rollout.decode(tokens[:end])) for end in range(1, len(tokens) + 1)] if steps else []
        for end, score in steps:
            if end < 1 or not math.isfinite(score):
                raise UserError(
                    f"reward.process: {name} returned the step ({end}, {score}) for completion {row}; a step ends "
                    "after at least one character and has a finite score."
                )
            token = next((index for index, length in enumerate(lengths) if length >= end), len(tokens) - 1)
            found.append((row, token, float(score)))
    table = torch.tensor(found, dtype=torch.float64).view(-1, 3)
    return StepRewards(table[:, 0].long(), table[:, 1].long(), table[:, 2].float(), len(mask))


def merged(found: list[StepRewards]) -> StepRewards | None:
    """The step scores of several functions for the same completions; none where there is no function."""
    if not found:
        return None
    row, token, score = (torch.cat([getattr(each, key) for each in found]) for key in ("row", "token", "score"))
    return StepRewards(row, token, score, found[0].completions)
