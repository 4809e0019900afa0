"""Prompt/answer pairs from a JSONL file: one object a line, {"prompt": …, "answer": …, any columns}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from omegaconf import MISSING

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task import Task


@dataclass
class Jsonl(Task):
    """path: the file; demonstrate: whether the answers may be imitated in supervised fine-tuning."""

    path: str = MISSING
    demonstrate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._examples = read_examples(Path(self.path).expanduser())

    def generate(self, rng: Random) -> Example:
        return rng.choice(self._examples)

    def verify(self, completion: str, example: Example) -> float:
        return float(completion.strip() == example.answer.strip())

    def demonstration(self, example: Example) -> str | None:
        return example.answer if self.demonstrate else None


def read_examples(path: Path) -> list[Example]:
    """The examples of a file; raises UserError that names the line which cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"task.path is '{path}', which cannot be read ({error}); it must be a JSONL file.") from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, answer = row.pop("prompt"), row.pop("answer")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(
                f"task.path: line {number} of '{path}' is {line[:60]!r}; it must be a JSON object with "
                f"the keys prompt and answer ({type(error).__name__}: {error})."
            ) from error
        examples.append(Example(str(prompt), str(answer), row))
    if not examples:
        raise UserError(f"task.path is '{path}', which holds no example; it must have one JSON object a line.")
    return examples
