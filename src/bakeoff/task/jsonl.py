"""Prompt/answer pairs from a JSONL file: one object per line, {"prompt": …, "answer": …, any columns}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from omegaconf import MISSING

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.task import Task


@dataclass
class Jsonl(Task):
    """path: the file; demonstrate: whether supervised fine-tuning may imitate the answers."""

    path: str = MISSING
    demonstrate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._examples = read_examples(self.path)

    def generate(self, rng: Random) -> Example:
        return rng.choice(self._examples)

    def verify(self, completion: str, example: Example) -> float:
        return float(completion.strip() == example.answer.strip())

    def demonstration(self, example: Example) -> str | None:
        return example.answer if self.demonstrate else None


def read_examples(path: str) -> list[Example]:
    """The examples of a file, with None for columns of other lines; raises UserError that names an unreadable line."""
    rows = read_rows(path, "task.path", ("prompt", "answer"))
    columns = dict.fromkeys(key for row in rows for key in row)
    rows = [columns | row for row in rows]
    return [Example(str(row.pop("prompt")), str(row.pop("answer")), row) for row in rows]


def read_rows(path: str, setting: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of the JSONL file that the key `setting` names; each must have `keys`.

    Raises UserError that names an unreadable line.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting} is '{file}', which cannot be read ({error}); it must be a JSONL file.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows.append(row | {key: row[key] for key in keys})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{setting}: line {number} of '{file}' is {line[:60]!r}; it must be a JSON object with "
                f"the keys {', '.join(keys)} ({type(error).__name__}: {error})."
            ) from error
    if not rows:
        raise UserError(f"{setting} is '{file}', which is empty; it must have one JSON object per line.")
    return rows
