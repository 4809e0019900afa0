"""Any of reasoning-gym's generators by name, with its own scorer as the verifier."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.task import Task
from bakeoff.task.verify import Extract


@dataclass
class ReasoningGym(Task):
    """A generator of reasoning-gym.

    generator    name of the generator in reasoning-gym
    parameters   arguments of the generator
    extract      the part of a completion that is scored
    """

    generator: str = "chain_sum"
    parameters: dict[str, Any] = field(default_factory=dict)
    extract: Extract = Extract.first_line

    foreign = True  # several scorers evaluate the completion as Python

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extract is Extract.after:
            raise UserError("task.extract is after, whose pattern reasoning_gym has no key for; choose another part.")
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
