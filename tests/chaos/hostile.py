"""Hostile completions against the scorers of reasoning-gym: `python -m tests.chaos.hostile [GENERATOR …]`.

A pair of scorer and completion survives if the completion scores within [0, 1] or as failed, writes no file, and leaves
the right answer (where there is none, an empty text) that is scored after it the score that it has without it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import ClassVar, NamedTuple

from bakeoff.batch import Example
from bakeoff.reward.reward import Reward
from bakeoff.task.gym import Extract, ReasoningGym
from bakeoff.task.task import Task

# MARKER stands for a path in a folder that everyone may write.
WRITING = (
    "open('MARKER', 'w').write('x')",
    "[[open('MARKER', 'w').write('x')]]",
    "[open('MARKER', 'w').write('x'), 1]",
    "__import__('os').system('touch MARKER')",
    "__import__('pathlib').Path('MARKER').touch()",
    "__import__('subprocess').run(['touch', 'MARKER'])",
    "exec(\"import os; os.mkdir('MARKER')\")",
    "__import__('urllib.request').request.urlopen('http://localhost:9')",
)
ENDING = (
    "exit()",
    "quit(0)",
    "__import__('os')._exit(0)",
    "__import__('os').abort()",
    "__import__('os').killpg(0, 9)",
    "__import__('os').kill(__import__('os').getppid(), 9)",
)
HANGING = ("9**9**9**9", "[9**9**9**9]", "factorial(10**9)", "__import__('time').sleep(1000)")
MISSHAPEN = (
    "[0] * 10**11",
    "'x' * 10**12",
    "(" * 5000 + ")" * 5000,
    "[" * 5000,
    "-" * 20_000 + "1",
    "1" * 10_000,
    *("1e999", "nan", "-inf", "1/0", "", "\x00", "\ud800", "{}", "null", "lambda: 0", "∀x∃y ٣ ²"),
    "a\n" * 2000,
    "<answer>" * 2000,
)
COMPLETIONS = (*WRITING, *ENDING, *HANGING, *MISSHAPEN)


@dataclass
class Generators(Task):
    """Several generators of reasoning-gym as one task, whose scorers share their workers."""

    foreign: ClassVar[bool] = True

    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tasks = {name: ReasoningGym(generator=name, extract=Extract.whole) for name in self.names}

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.heldout, self.shots, self.max_new_tokens, self.names)

    def examples(self) -> dict[str, Example]:
        """An example of each generator."""
        found = {name: task.generate(Random(1)) for name, task in self._tasks.items()}
        return {name: Example(e.prompt, e.answer, e.columns | {"generator": name}) for name, e in found.items()}

    def verify(self, completion: str, example: Example) -> float:
        return self._tasks[example.columns["generator"]].verify(completion, example)


class Trial(NamedTuple):
    """A completion against a scorer; failed: whether it had no score; fault: why it did not survive, or empty."""

    generator: str
    completion: str
    failed: bool
    fault: str


def trials(names: list[str], completions: Sequence[str] = COMPLETIONS) -> list[Trial]:
    """The trial of each completion against the scorer of each generator."""
    task, reward = Generators(names=names), Reward({"verifier": 1.0})
    examples = task.examples()
    answers = {name: example.answer or "" for name, example in examples.items()}  # five generators state none
    right = {name: task.judge(answers[name], examples[name]).score for name in names}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(name, text) for name in names for text in completions]
        markers = [Path(folder) / f"{number}" for number in range(len(pairs))]
        texts = [text.replace("MARKER", str(marker)) for (_, text), marker in zip(pairs, markers, strict=True)]
        asked = [each for (name, _), text in zip(pairs, texts, strict=True) for each in (text, answers[name])]
        verdicts = reward.judge(task, asked, [examples[name] for name, _ in pairs for _ in range(2)])
        for number, (name, text) in enumerate(pairs):
            hostile, after = verdicts[2 * number : 2 * number + 2]
            faults = {
                "wrote a file": markers[number].exists(),
                f"scored {hostile.score}": not 0 <= hostile.score <= 1,
                f"spoilt the score of the right answer, {right[name]}: {after}": after.score != right[name],
            }
            fault = ", ".join(fault for fault, is_so in faults.items() if is_so)
            found.append(Trial(name, text, hostile.failed, fault))
    return found


def every_generator() -> list[str]:
    """The generators of reasoning-gym but for `composite`, which takes generators as its parameters."""
    from reasoning_gym.factory import DATASETS

    return sorted(set(DATASETS) - {"composite"})


def main(names: list[str]) -> None:
    """Tries all generators, or those named; prints what did not survive, and ends with 1 if there is anything."""
    began = time.monotonic()
    found = trials(names or every_generator())
    lost = [trial for trial in found if trial.fault]
    for trial in lost:
        print(f"{trial.generator}: {trial.completion[:60]!r} {trial.fault}")
    print(
        f"hostile completions: tried {len(found)}, survived {len(found) - len(lost)}, of which "
        f"{sum(trial.failed for trial in found)} scored 0 as failed, in {time.monotonic() - began:.0f} s"
    )
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    from tests.chaos import hostile  # a worker imports the task by the module's own name

    hostile.main(sys.argv[1:])
