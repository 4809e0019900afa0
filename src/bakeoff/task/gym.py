"""Any of reasoning-gym's generators by name, with its own scorer as the verifier."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from enum import Enum
from random import Random
from typing import Any, ClassVar

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.task import Task


class Extract(Enum):
    """The part of a completion that is its answer."""

    whole = "whole"
    first_line = "first_line"
    last_number = "last_number"
    answer_tag = "answer_tag"

    def __call__(self, completion: str) -> str:
        match self.value:
            case "first_line":
                return completion.strip().split("\n")[0].strip()
            case "last_number":
                return last_number(completion)
            case "answer_tag":
                tagged = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
                return tagged[-1].strip() if tagged else ""
            case _:
                return completion.strip()


SIGN, EXPONENT = r"(?:(?<![\w.])[-+])?", r"(?:[eE][-+]?\d+)?"
NUMBER = re.compile(rf"{SIGN}(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?{EXPONENT}|{SIGN}\.\d+{EXPONENT}")


def last_number(text: str) -> str:
    """The last number of a text, without separators of thousands: `$-1,234.50.` → -1234.50. Empty if there is none."""
    numbers = NUMBER.findall(text.replace("−", "-"))
    return numbers[-1].replace(",", "") if numbers else ""


@dataclass
class ReasoningGym(Task):
    """A generator of reasoning-gym.

    generator    name of the generator there
    parameters   arguments of the generator
    extract      the part of a completion that is scored
    """

    generator: str = "chain_sum"
    parameters: dict[str, Any] = field(default_factory=dict)
    extract: Extract = Extract.first_line

    foreign: ClassVar[bool] = True  # several scorers evaluate the completion as Python

    def __post_init__(self) -> None:
        super().__post_init__()
        self._dataset = self._create(seed=0, size=1)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self))  # some datasets hold lambdas

    def _create(self, seed: int, size: int) -> Any:
        import reasoning_gym  # 3 s: only where this task is chosen

        try:
            return reasoning_gym.create_dataset(self.generator, seed=seed, size=size, **self.parameters)
        except ValueError as error:
            known = "" if "not registered" not in str(error) else "; see reasoning_gym.factory.DATASETS"
            raise UserError(f"task.generator is {self.generator!r}: {error}{known}.") from error
        except Exception as error:  # whatever a generator makes of its arguments
            raise UserError(
                f"task.parameters is {self.parameters}, but reasoning-gym's {self.generator} refuses it: {error}."
            ) from error

    def generate(self, rng: Random) -> Example:
        entry = self._create(seed=rng.getrandbits(31), size=1)[0]
        answer = None if entry["answer"] is None else str(entry["answer"])
        return Example(entry["question"], answer, {"entry": entry, **entry["metadata"]})

    def verify(self, completion: str, example: Example) -> float:
        return float(self._dataset.score_answer(self.extract(completion), example.columns["entry"]))
