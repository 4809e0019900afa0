"""The largest of n numbers: `Largest of 37, 82, 15, 64?` → `82`. Short prompts for small language models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.task import Task


@dataclass
class Largest(Task):
    """count: number of numbers, drawn from 0 to `below` − 1; there are below^count prompts."""

    count: int = 4
    below: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 2 or self.below < 2:
            raise UserError(f"task.count is {self.count} and task.below {self.below}; both must be at least 2.")

    def generate(self, rng: Random) -> Example:
        numbers = [rng.randrange(self.below) for _ in range(self.count)]
        return Example(f"Largest of {', '.join(map(str, numbers))}?", str(max(numbers)))

    def verify(self, completion: str, example: Example) -> float:
        """Whether the completion has one number, the largest; words around it are allowed."""
        return float(re.findall(r"\d+", completion) == [example.answer])
