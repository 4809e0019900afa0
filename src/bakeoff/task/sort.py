"""Sort n digits: `4829103758=` → `0123457889`. Its variants are tasks of the arena's regimes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import ClassVar

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.ranges import count, share
from bakeoff.task.task import Task

BABBLE = "*"


class Credit(Enum):
    """The digits that score as steps.

    prefix   those before the first wrong one
    place    every one that is in its place, whatever stands before it
    """

    prefix = "prefix"
    place = "place"


@dataclass
class Sort(Task):
    """Sort digits. A step is a digit.

    digits        number of digits to sort; there are 10^digits prompts
    shortest      if above 0, the number of digits is drawn from this to `digits`
    credit        digits that score as steps: those before the first wrong one (prefix), or each in its place (place)
    babble        largest number of `*` that a demonstration puts before its answer; the verifier ignores them
    decoy         share of demonstrations that sort in descending order
    decoy_score   score of an answer in descending order
    """

    scores_steps: ClassVar[bool] = True

    digits: int = count(10, least=1, unit="digits")
    shortest: int = count(0, unit="digits")
    credit: Credit = Credit.prefix
    babble: int = count(0, most=2**16, unit="characters")
    decoy: float = share(0.0)
    decoy_score: float = share(0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.digits + self.babble >= self.max_new_tokens:
            raise UserError(
                f"task.digits is {self.digits} and task.babble {self.babble}; their sum must be below "
                f"task.max_new_tokens ({self.max_new_tokens}), which counts EOS."
            )
        if self.shortest > self.digits:
            raise UserError(f"task.shortest is {self.shortest}; it must be at most task.digits ({self.digits}).")

    def generate(self, rng: Random) -> Example:
        number = rng.randint(self.shortest, self.digits) if self.shortest else self.digits
        digits = rng.choices("0123456789", k=number)
        return Example(prompt="".join(digits) + "=", answer="".join(sorted(digits)))

    def difficulty(self, example: Example) -> str:
        assert example.answer is not None
        return str(len(example.answer))

    def demonstration(self, example: Example) -> str:
        assert example.answer is not None
        draw = Random(example.prompt)  # a prompt has the same demonstration whenever it is drawn
        babble = BABBLE * draw.randint(0, self.babble)
        return babble + (example.answer[::-1] if draw.random() < self.decoy else example.answer)

    def verify(self, completion: str, example: Example) -> float:
        assert example.answer is not None
        digits = self.without_babble(completion)
        return self.decoy_score if digits == example.answer[::-1] != example.answer else float(digits == example.answer)

    def verify_steps(self, completion: str, example: Example) -> list[tuple[int, float]]:
        """1/n for each digit that `credit` counts, 0 for the others and for missing digits at the end.

        If missing digits were no steps, a completion that stops early would have fewer bad steps than a complete one.
        """
        assert example.answer is not None
        digits, answer = self.without_babble(completion), example.answer
        first = len(completion) - len(digits)
        if self.credit is Credit.place:
            right = [at < len(answer) and digit == answer[at] for at, digit in enumerate(digits)]
        else:
            right = [digits[:end] == answer[:end] for end in range(1, len(digits) + 1)]
        steps = [(first + end, float(ok) / len(answer)) for end, ok in enumerate(right, start=1)]
        return steps + [(len(completion) + 1, 0.0)] * (len(answer) - len(digits))

    def without_babble(self, completion: str) -> str:
        """The completion from its first digit on, where babble is allowed."""
        return completion.lstrip(BABBLE) if self.babble else completion
