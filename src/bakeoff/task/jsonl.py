"""Prompt/answer pairs from a JSONL file: one object per line, {"prompt": …, "answer": …, any columns}."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from omegaconf import MISSING

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.task import Task

LONGEST_LINE = 16 * 2**20  # bytes; a longer line is no prompt but a file of another kind


@dataclass
class Jsonl(Task):
    """Pairs from a JSONL file.

    path          the file of prompts and answers
    demonstrate   whether supervised fine-tuning may imitate the answers
    """

    path: str = MISSING
    demonstrate: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._examples = read_examples(self.path)

    def files(self) -> dict[str, str]:
        return {"path": self.path}

    def generate(self, rng: Random) -> Example:
        return rng.choice(self._examples)

    def verify(self, completion: str, example: Example) -> float:
        return float(completion.strip() == str(example.answer).strip())

    def demonstration(self, example: Example) -> str | None:
        return example.answer if self.demonstrate else None

    def known_examples(self) -> list[Example]:
        return self._examples


def read_examples(path: str) -> list[Example]:
    """The examples of a file, all with the same columns; a value is none where the line has no such column.

    Raises UserError that names an unreadable line.
    """
    rows = read_rows(path, "task.path", ("prompt", "answer"))
    texts = [(row.pop("prompt"), row.pop("answer")) for row in rows]
    columns = {key: None for row in rows for key in row}
    return [Example(prompt, answer, columns | row) for (prompt, answer), row in zip(texts, rows, strict=True)]


def read_rows(path: str, setting: str, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    """The objects of the JSONL file that the key `setting` names; each has the keys `texts`, whose values are texts.

    Raises UserError that names the first line which is something else.
    """
    file = Path(path)
    rows = []
    for number, line in enumerate(read_lines(file, setting), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                rows.append(read_row(text, texts))
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{setting}: line {number} of '{file}' is {line[:60].decode(errors='replace')!r}; it must be a JSON "
                f"object with a text for each of the keys {', '.join(texts)} ({error})."
            ) from error
    if not rows:
        raise UserError(f"{setting} is '{file}', which is empty; it must have one JSON object per line.")
    return rows


def read_lines(file: Path, setting: str) -> Iterator[bytes]:
    """The lines of a file, which may hold any character but a line feed. A pipe or a device could be read for ever."""
    try:
        file = file.expanduser()
        if file.exists() and not file.is_file():
            raise OSError("it is a folder, a pipe or a device")
        with file.open("rb") as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{setting}: a line of '{file}' is longer than {LONGEST_LINE >> 20} MiB; it must be a JSONL "
                        "file, with one object per line."
                    )
                yield line
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no home directory
        raise UserError(f"{setting} is '{file}', which cannot be read ({error}); it must be a JSONL file.") from error


def read_row(line: str, texts: tuple[str, ...]) -> dict[str, Any]:
    """The object of a line; raises ValueError where it is none, or where one of `texts` is missing or is no text.

    A number stands for its text as the file has it: 1.0 is not 1.
    """
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}")
    written = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    for key in texts:
        if key not in row:
            raise ValueError(f"{key} is missing")
        if isinstance(row[key], bool) or not isinstance(row[key], (str, int, float)):
            raise ValueError(f"{key} is {json.dumps(row[key])[:60]}, which is no text")
        row[key] = str(written[key])
        row[key].encode()  # a lone surrogate is no character, and no tokenizer reads it
    if not row["prompt"].strip():
        raise ValueError("prompt is empty")
    return row
