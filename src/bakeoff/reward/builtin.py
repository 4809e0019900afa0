"""Rewards of ours: the task's verifier, the learned model, the format and the length of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import regex
from torch import Tensor

from bakeoff.algorithm.shaping import Overlong
from bakeoff.batch import Rollout
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.ranges import number
from bakeoff.reward.function import Steps
from bakeoff.task.task import Task, Verdict

PATIENCE_S = 1.0  # a pattern may take exponential time on a text that a policy finds


@dataclass
class Completed:
    """A rollout with what a reward of ours may read.

    judged     the task's verdict on each completion
    failed     by function: why it has no score of a completion, by the completion's row
    learned    the reward model's score of each completion [S]; none where no reward is learned
    """

    task: Task
    rollout: Rollout
    judged: list[Verdict]
    learned: Tensor | None
    failed: dict[str, dict[int, str]] = field(default_factory=dict)

    @property
    def verdicts(self) -> list[float]:
        """The verifier's score of each completion."""
        return [verdict.score for verdict in self.judged]


def verifier(completed: Completed) -> Sequence[float]:
    """The task's own verifier."""
    return completed.verdicts


def learned(completed: Completed) -> Sequence[float]:
    """The reward model."""
    assert completed.learned is not None, "the reward model was not trained"
    scores: list[float] = completed.learned.tolist()
    return scores


def verified_steps(completed: Completed) -> list[Steps]:
    """The task's own scores of steps."""
    return [verdict.steps for verdict in completed.judged]


@dataclass
class Format:
    """1 for a completion of the wanted format, 0 for any other.

    tags      names of the tags, each once and in this order, as `<think>…</think>`, with only white space between and
              around them
    pattern   regular expression that the whole completion must match, in place of the tags; `.` matches line ends too
    """

    tags: list[str] = field(default_factory=lambda: ["think", "answer"])
    pattern: str = ""

    def __post_init__(self) -> None:
        if not self.pattern and not self.tags:
            raise UserError("reward.format.tags and reward.format.pattern are empty; one of them must state a format.")
        names = map(regex.escape, self.tags)
        parts = [rf"<{name}>(?:(?!</?{name}>).)*+</{name}>\s*" for name in names]
        try:
            self._pattern = regex.compile(self.pattern or "".join([r"\s*", *parts]), regex.DOTALL)
        except regex.error as error:
            raise UserError(
                f"reward.format.pattern is {self.pattern!r}, no regular expression: {error}; mend the pattern."
            ) from error

    def __call__(self, completed: Completed) -> list[float]:
        return [self._matches(text, row, completed) for row, text in enumerate(completed.rollout.completions)]

    def _matches(self, text: str, row: int, completed: Completed) -> float:
        try:
            return float(self._pattern.fullmatch(text, timeout=PATIENCE_S) is not None)
        except TimeoutError:
            completed.failed.setdefault("reward.format.pattern", {})[row] = f"took more than {PATIENCE_S:g} s"
            return 0.0


@dataclass
class Length:
    """0 up to the generation budget less a margin, then linearly down to −1 at the budget: DAPO's soft overlong term.

    margin_share   share of the generation budget (task.max_new_tokens) that is the margin; 1: every token costs
                   1/budget
    """

    margin_share: float = number(0.2, least=0.001, most=1)

    def __call__(self, completed: Completed) -> list[float]:
        lengths = completed.rollout.sequences.mask.sum(1).to(HOST)
        scores: list[float] = Overlong(self.margin_share, penalty=1.0)(lengths, completed.rollout.max_tokens).tolist()
        return scores
