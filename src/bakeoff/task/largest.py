"""The largest of n numbers: `Largest of 37, 82, 15, 64?` → `82`. Short prompts for small language models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from bakeoff.batch import Example
from bakeoff.ranges import VAST, number
from bakeoff.task.task import Task


@dataclass
class Largest(Task):
    """The largest of several numbers.

    count   number of numbers; there are below^count prompts
    below   the numbers are drawn from 0 to below − 1
    """

    count: int = number(4, least=2, most=1000, unit="numbers")
    below: int = number(100, least=2, most=VAST)

    def generate(self, rng: Random) -> Example:
        numbers = [rng.randrange(self.below) for _ in range(self.count)]
        return Example(f"Largest of {', '.join(map(str, numbers))}?", str(max(numbers)))

    def verify(self, completion: str, example: Example) -> float:
        """Whether the completion has one number, the largest; words around it are allowed."""
        return float(re.findall(r"\d+", completion) == [example.answer])
