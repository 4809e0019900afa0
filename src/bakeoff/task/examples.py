"""Rows of a table as examples: prompts by column, template or messages, answers by column or template and pattern."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from bakeoff.batch import Example
from bakeoff.errors import UserError
from bakeoff.task.table import Row, checked, shown
from bakeoff.task.task import Message
from bakeoff.task.template import compiled, rendered
from bakeoff.task.verify import Verify

if TYPE_CHECKING:
    from bakeoff.task.dataset import Dataset

TextOf = Callable[[Row], str]  # raises ValueError where the row has no such text


def examples_of(rows: list[Row], task: Dataset, key: str, path: str) -> list[Example]:
    """The examples of the table that a key names; raises UserError that names the row which cannot be used."""
    columns: dict[str, None] = {column: None for row in rows for column in row.values}
    make = maker(task, f"{key} is '{path}'", list(columns))
    wanted = "be an object with a text for each of the keys prompt, answer"
    if task.prompt or task.answer or task.solution:
        wanted = "have a text for task.prompt, task.answer and task.solution"
    found = []
    for row in rows:
        try:
            found.append(make(row))
        except (ValueError, TypeError) as error:
            raise row.refused(key, wanted, error) from error
    return found


def maker(task: Dataset, table: str, columns: list[str]) -> Callable[[Row], Example]:
    """Row → Example, as the task's keys say, for a table with these columns; `table` names it in an error."""
    prompt = task.prompt or next((name for name in ("prompt", "messages") if name in columns), "prompt")
    if not task.prompt and prompt not in columns:
        raise UserError(
            f"{table}, which has no column prompt or messages; the columns are "
            f"{', '.join(columns)}; task.prompt names one, or is a template such as '{{{{ question }}}}'."
        )
    answer = task.answer or next((name for name in ("answer", "completion") if name in columns), "")
    solution = task.solution or ("completion" if answer != "completion" and "completion" in columns else "")
    text = {"answer": answer, "solution": solution}
    texts = {key: text_of(f"task.{key}", spec, columns) for key, spec in text.items() if spec}
    prompt_text = None if prompt in columns else text_of("task.prompt", prompt, columns)
    pattern = re.compile(task.answer_pattern) if task.answer_pattern else None
    empty = dict.fromkeys(column for column in columns if column not in ("prompt", "answer"))

    def make(row: Row) -> Example:
        said = texts["answer"](row) if answer else None
        worked = texts["solution"](row) if solution else None
        if prompt_text is None and isinstance(row.values.get(prompt), list):
            messages = as_messages(prompt, row.values[prompt])
            if messages[-1]["role"] == "assistant" and prompt == "messages":
                last = messages.pop()["content"]
                said, worked = last if said is None else said, last if worked is None else worked
        else:
            content = row.text(prompt) if prompt_text is None else prompt_text(row)
            messages = [{"role": "user", "content": content}]
        if pattern is not None and said is not None:
            said = last_match(pattern, said)
        if task.verify is not Verify.function and said is not None and not said.strip():  # it equals no answer
            raise ValueError("answer is empty")
        rest = {key: value for key, value in row.values.items() if key in empty}
        return example_of(messages, said, worked, task.system, empty | rest)

    return make


def text_of(key: str, spec: str, columns: list[str]) -> TextOf:
    """The text of a column or of a template in a row; raises UserError where `spec` is neither."""
    if spec in columns:
        return lambda row: column_text(row, spec)
    if "{{" in spec or "{%" in spec:
        return partial(rendered, compiled(key, spec, columns), columns)
    if spec in ("prompt", "answer"):  # a row says that it is missing, and its line
        return lambda row: row.text(spec)
    raise UserError(
        f"{key} is {spec!r}, which is neither a column nor a template; the columns are {', '.join(columns)}, and "
        f"'{{{{ {columns[0] if columns else 'column'} }}}}' is a template."
    )


def example_of(
    messages: list[Message], answer: str | None, solution: str | None, system: str, columns: dict[str, Any]
) -> Example:
    """The example of a chat; its prompt is the text of the messages, which identifies the prompt."""
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    turns = [message for message in messages if message["role"] != "system"]
    if not turns or not turns[-1]["content"].strip():
        raise ValueError("prompt is empty")
    prompt = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    if len(turns) == 1:
        prompt = turns[0]["content"]
    plain = len(messages) == 1 and messages[0]["role"] == "user"
    return Example(prompt, answer, columns, solution, [] if plain else messages)


def as_messages(column: str, value: list[Any]) -> list[Message]:
    """The messages of a chat; raises ValueError where they are something else."""
    found = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(f"{column} has {shown(message)}, which is not a message with a text for role and content")
        found.append({"role": checked(message["role"]), "content": checked(message["content"])})
    if not found:
        raise ValueError(f"{column} is empty")
    return found


def column_text(row: Row, column: str) -> str:
    """The text of a column, or of the last message that it holds."""
    value = row.values.get(column)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return as_messages(column, value)[-1]["content"]
    return row.text(column)


def last_match(pattern: re.Pattern[str], text: str) -> str:
    """The last match that has a text, of a pattern or of its first group; raises ValueError where there is none."""
    matches = [(match[1] if pattern.groups else match[0]) or "" for match in pattern.finditer(text)]
    found = [match.strip() for match in matches if match.strip()]
    if not found:
        raise ValueError(f"task.answer_pattern {pattern.pattern!r} is not in {shown(text)}")
    return found[-1]
