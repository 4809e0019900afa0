"""Score of a completion: a weighted sum of rewards of ours and of a user's functions.

Verifiers and functions of others are called in workers (isolation.py): on text of a policy they may hang, raise, or do
what the text says.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from bakeoff.batch import Example, Rollout, Scores, StepRewards
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.nearest import name_of
from bakeoff.ranges import VAST, number
from bakeoff.reward.builtin import Completed, Format, Length, learned, verified_steps, verifier
from bakeoff.reward.distortion import Distortion
from bakeoff.reward.function import Reader, Steps, UserFunction, as_scores, as_steps, call_arguments, shown
from bakeoff.reward.isolation import Failure, Scorer, Workers, attempt
from bakeoff.task import TASKS
from bakeoff.task.task import Message, Task, Verdict
from bakeoff.user_code import require_loggable

VERIFIER, ENVIRONMENT = "verifier", "environment"
TRIED = 8  # number of completions: a function that has never worked, and fails on each of them alone, always fails
FAILED = "{} on a completion; its score there is 0, and reward/failed counts all such failures"
HINT = (
    "; it runs without network and may take {:g} s (reward.timeout_s) per completion; reward.isolated=false calls it "
    "in the run's own process, without limits."
)


REWARDS: dict[str, Callable[[Completed], Sequence[float | None]]] = {
    "verifier": verifier,
    "learned": learned,
    "format": Format(),
    "length": Length(),
}
PROCESS_REWARDS: dict[str, Callable[[Completed], list[Steps]]] = {"verifier": verified_steps}


def silent(message: str) -> None:
    """Reports nothing; a lambda could not be sent to another process."""


@dataclass
class Reward:
    """Weighted sum of reward functions.

    functions             weight by name; a name is one of REWARDS, an import path `module.function`, or a function in a
                          file, `./file.py:function`, which is relative to the working folder
    process               the same for functions that score steps; names of ours are those of PROCESS_REWARDS
    format                options of the reward `format`
    length                options of the reward `length`
    missing_eos_penalty   subtracted from the score of a completion that does not end within its budget
    distortion            distortion of the sum as the method sees it; true reward and accuracies stay as they are
    isolated              whether code of others runs in workers, without network and without writing outside of TMPDIR
    timeout_s             seconds that a worker may take for a completion; a list of n completions may take n times that
    memory_mb             memory that a worker may use in addition to what it imports, in MB
    """

    functions: dict[str, float] = number(dict, least=-VAST, most=VAST)
    process: dict[str, float] = number(dict, least=-VAST, most=VAST)
    format: Format = field(default_factory=Format)
    length: Length = field(default_factory=Length)
    missing_eos_penalty: float = number(0.0, least=0, most=VAST, unit="score")
    distortion: Distortion = field(default_factory=Distortion)
    isolated: bool = True
    timeout_s: float = number(1.0, least=0.001, most=3600, unit="s")
    memory_mb: float = number(2048.0, least=64, most=1e6, unit="MB")

    def __post_init__(self) -> None:
        if not self.functions and not self.process:
            raise UserError(
                "reward.functions and reward.process are empty; one of them must name a reward, with a weight: "
                f"{', '.join(REWARDS)}, an import path or a function in a file."
            )
        self.report: Callable[[str], None] = silent
        self._reported: set[str] = set()
        self.user: dict[str, UserFunction] = {}  # by label
        self._functions = {name: self._find(name, "reward.functions", REWARDS, as_scores) for name in self.functions}
        self._process = {name: self._find(name, "reward.process", PROCESS_REWARDS, as_steps) for name in self.process}
        for key, named in (("reward.functions", self.functions), ("reward.process", self.process)):
            if len({self._term(name, key) for name in named}) < len(named):
                raise UserError(
                    f"{key} names {' and '.join(named)}, two of which would share a metric; rename a function or "
                    "its file."
                )
        self._worked: set[str] = set()
        self._workers: tuple[Task, Workers] | None = None

    def files(self) -> dict[str, str]:
        """The source files of the user's functions, by the key and name of each."""
        named = {label.removeprefix("reward.").replace(": ", "."): each.source for label, each in self.user.items()}
        return {name: source for name, source in named.items() if source}

    @property
    def is_learned(self) -> bool:
        """Whether it needs a reward model."""
        return "learned" in self.functions

    def __call__(self, task: Task, rollout: Rollout, learned: Tensor | None = None) -> Scores:
        """Scores of a rollout, in the host's memory; raises UserError that names a function which always fails.

        `learned` [S] are the reward model's scores.
        """
        judged = self.judge(task, rollout.completions, rollout.examples)
        completed = Completed(task, rollout, judged, learned)
        terms: dict[str, Tensor] = {}
        count = len(judged)
        outcome = torch.zeros(count)
        for name, function in self._functions.items():
            scores = as_scores(f"reward.functions: {name}", function(completed), count)
            term = torch.tensor([math.nan if score is None else score for score in scores])
            if term.isnan().all():
                self.report_once(name, "returned None for every completion of a rollout, to which it adds nothing")
            outcome = outcome + torch.where(term.isnan(), 0.0, self.functions[name] * term)
            terms[self._term(name, "reward.functions")] = term
        outcome = outcome - self.missing_eos_penalty * ~rollout.ended.to(HOST)
        outcome = self.distortion(outcome, rollout.prompts)
        found: list[StepRewards] = []
        for name, function in self._process.items():
            steps = to_token_steps(as_steps(f"reward.process: {name}", function(completed), count), rollout)
            summed = torch.zeros(count).index_add(0, steps.row, steps.score)
            terms[f"{self._term(name, 'reward.process')}_steps"] = summed
            found.append(replace(steps, score=self.process[name] * steps.score))
        true = torch.tensor([verdict.grade for verdict in judged])
        exact = torch.tensor(completed.verdicts) >= 1.0
        for who, reasons in completed.failed.items():
            self.report_once(who, FAILED.format(next(iter(reasons.values()))))
        without = {row for reasons in completed.failed.values() for row in reasons}
        failed = torch.tensor([verdict.failed or row in without for row, verdict in enumerate(judged)])
        return Scores(outcome, exact, true, failed, terms, merged(found))

    def judge(self, task: Task, completions: list[str], examples: list[Example]) -> list[Verdict]:
        """The task's verdict on each completion; where the verifier fails, it is one of zeros."""
        found = self._ask(task, VERIFIER, list(zip(completions, examples, strict=True)))
        if reason := next((each.reason for each in found if isinstance(each, Failure)), ""):
            self.report_once("the verifier", FAILED.format(reason))
        return [Verdict(0.0, 0.0, [], failed=True) if isinstance(f, Failure) else Verdict(*f) for f in found]

    def replies(self, task: Task, conversations: list[tuple[list[Message], Example]]) -> list[str | None]:
        """The environment's reply to each conversation, none where it ends; raises UserError where the task fails."""
        found = self._ask(task, ENVIRONMENT, conversations)
        for each in found:
            if each is not None and not (isinstance(each, str) and each):
                did = each.reason if isinstance(each, Failure) else f"returned {shown(each)}"
                raise UserError(
                    f"the `reply` of the task {name_of(task, TASKS)} {did}; whatever the policy writes, it must return "
                    "a text, or None to end the conversation."
                )
        return found

    def _ask(self, task: Task, name: str, calls: list[Any]) -> list[Any]:
        """What the task's verifier or environment returns for each of these arguments, or its Failure."""
        if self.isolated and task.foreign:
            return self._workers_of(task).map(name, calls, self.timeout_s, seed=0, spread=True)
        return [attempt(scorers_of(task)[name], call) for call in calls]

    def _find(
        self, name: str, key: str, ours: dict[str, Callable[[Completed], Any]], read: Reader
    ) -> Callable[[Completed], Any]:
        """The reward of that name: ours, with the options that it has here, or the user's function."""
        if name in ours:
            configured: Callable[[Completed], Any] | None = getattr(self, name, None)
            return configured if configured and isinstance(configured, type(ours[name])) else ours[name]
        function = UserFunction(name, key, read, tuple(ours))
        require_loggable(name, key)
        self.user[function.label] = function
        return partial(self._entries, function)

    def _term(self, name: str, key: str) -> str:
        """The name under which a reward is logged."""
        function = self.user.get(f"{key}: {name}")
        return function.name if function else name

    def report_once(self, who: str, what: str) -> None:
        """Reports the first thing of note that a scorer does."""
        if who not in self._reported:
            self._reported.add(who)
            self.report(f"{who} {what}")

    def _entries(self, function: UserFunction, completed: Completed) -> list[Any]:
        """A function's entry for each completion.

        Where the call with the whole list fails, each completion is scored alone, and those that fail alone have 0. A
        function that fails so before it has ever worked is a mistake, which raises UserError.
        """
        arguments, count = call_arguments(completed.rollout), len(completed.judged)
        whole = self._call(function, completed.task, [arguments])[0]
        if not isinstance(whole, Failure):
            self._worked.add(function.label)
            return list(whole)
        alone = [{key: values[row : row + 1] for key, values in arguments.items()} for row in range(count)]
        found = self._call(function, completed.task, alone[:TRIED])
        if function.label not in self._worked and all(isinstance(result, Failure) for result in found):
            raise UserError(
                f"{function.place} {whole.reason} on its first {count} completions; it is called "
                f"with {', '.join(arguments)}, and must return a list with one entry per completion"
                + (HINT.format(self.timeout_s) if self.isolated else ".")
            )
        found += self._call(function, completed.task, alone[TRIED:])
        if failed := {row: result.reason for row, result in enumerate(found) if isinstance(result, Failure)}:
            completed.failed[function.place] = failed
        return [function.nothing if isinstance(result, Failure) else result[0] for result in found]

    def _call(self, function: UserFunction, task: Task, calls: list[dict[str, list[Any]]]) -> list[Any]:
        """What a function returns for each of these arguments, or its Failure."""
        if not self.isolated:
            return [attempt(function, (arguments,)) for arguments in calls]
        seconds = self.timeout_s * max((len(arguments["completions"]) for arguments in calls), default=1)
        asked = [(arguments,) for arguments in calls]
        return self._workers_of(task).map(function.label, asked, seconds, torch.initial_seed(), spread=False)

    def _workers_of(self, task: Task) -> Workers:
        """The workers that call the functions, and the task's verifier if it is code of others."""
        if self._workers is None or self._workers[0] is not task:
            scorers = scorers_of(task) if task.foreign else {}
            self._workers = task, Workers(scorers | self.user, self.memory_mb)
        return self._workers[1]


def scorers_of(task: Task) -> dict[str, Scorer]:
    """The code of a task that reads a policy's text."""
    return {VERIFIER: partial(judgement, task), ENVIRONMENT: task.reply}


def judgement(task: Task, completion: str, example: Example) -> tuple[float, float, Steps]:
    """The task's verdict as plain values."""
    verdict = task.judge(completion, example)
    return verdict.score, verdict.grade, verdict.steps


def to_token_steps(said: list[Steps], rollout: Rollout) -> StepRewards:
    """Step scores on the tokens that end the steps, in the host's memory; an end past the text is the last token."""
    found: list[tuple[int, int, float]] = []
    for row, (steps, (tokens, columns)) in enumerate(zip(said, rollout.sequences.written(), strict=True)):
        begins = [0, *(at for at in range(1, len(columns)) if columns[at] > columns[at - 1] + 1)]  # of each turn
        lengths = [len(rollout.decode(tokens[at:end])) for at, end in pairwise([*begins, len(tokens)])]
        before = list(accumulate((length + 1 for length in lengths), initial=0))  # each turn is on a line of its own

        @cache
        def characters(token: int, read: tuple[list[int], ...] = (tokens, begins, lengths, before)) -> int:
            tokens, begins, lengths, before = read
            turn = bisect_right(begins, token) - 1
            # a part of a stop string is decoded too
            return before[turn] + min(len(rollout.decode(tokens[begins[turn] : token + 1])), lengths[turn])

        for end, score in steps:
            token = bisect_left(range(len(tokens)), end, key=characters)  # a long text is not decoded at every token
            found.append((row, columns[min(token, len(tokens) - 1)], score))
    table = torch.tensor(found, dtype=torch.float64).view(-1, 3)
    return StepRewards(table[:, 0].long(), table[:, 1].long(), table[:, 2].float(), len(said))


def merged(found: list[StepRewards]) -> StepRewards | None:
    """The step scores of several functions for the same completions; none where there is no function."""
    if not found:
        return None
    row, token, score = (torch.cat([getattr(each, key) for each in found]) for key in ("row", "token", "score"))
    return StepRewards(row, token, score, found[0].completions)
