"""Sort n digits: `4829103758=` → `0123457889`."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.ranges import count
from bakeoff.task.task import Task


@dataclass
class Sort(Task):
    """Sort digits. A step is a digit.

    digits   number of digits to sort; there are 10^digits prompts
    """

    scores_steps: ClassVar[bool] = True

    digits: int = count(10, least=1, unit="digits")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.digits >= self.max_new_tokens:
            raise UserError(
                f"task.digits is {self.digits}; it must be below task.max_new_tokens ({self.max_new_tokens}), which "
                "counts EOS."
            )

    def generate(self, rng: Random) -> Example:
        digits = rng.choices("0123456789", k=self.digits)
        return Example(prompt="".join(digits) + "=", answer="".join(sorted(digits)))

    def verify(self, completion: str, example: Example) -> float:
        return float(completion == example.answer)

    def verify_steps(self, completion: str, example: Example) -> list[tuple[int, float]]:
        """1/n for each digit up to the first wrong one, 0 for the digits after it and for missing digits at the end.

        If missing digits were no steps, a completion that stops early would have fewer bad steps than a complete one.
        """
        assert example.answer is not None
        right = [completion[:end] == example.answer[:end] for end in range(1, len(completion) + 1)]
        steps = [(end, float(ok) / self.digits) for end, ok in enumerate(right, start=1)]
        return steps + [(len(completion) + 1, 0.0)] * (self.digits - len(completion))
