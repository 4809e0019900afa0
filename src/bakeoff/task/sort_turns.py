"""Sort digits that arrive in several turns: `482=` → `248`, then `91=` → `12489`. An environment of a few lines."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from bakeoff.batch import Example
from bakeoff.ranges import count
from bakeoff.task.task import Message, Task


@dataclass
class SortTurns(Task):
    """Sort digits that arrive in turns: every answer has all of them so far. A step is a turn.

    digits   number of digits that arrive in a turn; there are 10^digits prompts
    turns    number of turns
    """

    scores_steps: ClassVar[bool] = True

    digits: int = count(3, least=1, unit="digits")
    turns: int = count(3, least=1, most=1000, unit="turns")

    def generate(self, rng: Random) -> Example:
        arrivals = ["".join(rng.choices("0123456789", k=self.digits)) for _ in range(self.turns)]
        answers = ["".join(sorted("".join(arrivals[: turn + 1]))) for turn in range(self.turns)]
        return Example(f"{arrivals[0]}=", "\n".join(answers), {"arrivals": arrivals})

    def reply(self, messages: list[Message], example: Example) -> str | None:
        """The digits of the next turn, whatever the policy has answered."""
        answered = len(messages) // 2
        return f"{example.columns['arrivals'][answered]}=" if answered < self.turns else None

    def demonstration(self, example: Example) -> list[str]:
        assert example.answer is not None
        return example.answer.split("\n")

    def verify(self, completion: str, example: Example) -> float:
        """Whether the answers of all turns are right."""
        return float(completion == example.answer)

    def verify_steps(self, completion: str, example: Example) -> list[tuple[int, float]]:
        """1/turns for each turn that is right, at its end; turns that are missing have zero at the end of all."""
        answers, steps, end = self.demonstration(example), [], 0
        for said, answer in zip([*completion.split("\n"), *[None] * len(answers)], answers, strict=False):
            end += 1 if said is None else len(said)
            steps.append((max(end, 1), float(said == answer) / len(answers)))
            end += 1
        return steps
