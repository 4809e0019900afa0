"""Reward functions of a user: import, arguments, and the scores that they return.

A function has the signature that TRL users know, `fn(prompts, completions, **columns) -> list[float]`; the columns are
`answer`, `completion_ids` and the columns of the examples. A function that scores steps takes the same arguments and
returns a list of (end, score) for each completion, where `end` is the number of characters up to the end of the step.
An `end` past the text means the EOS token; use it to score missing steps.
"""

from __future__ import annotations

import importlib
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

from bakeoff.batch import Rollout
from bakeoff.errors import UserError
from bakeoff.reward.isolation import described
from bakeoff.task.task import as_number

Steps = list[tuple[int, float]]
Reader = Callable[[str, Any, int], list[Any]]


class UserFunction:
    """The function at an import path, which scores a list of completions.

    read      as_scores, or as_steps for a function that scores steps
    nothing   the entry of a completion for which the function fails
    """

    def __init__(self, path: str, key: str, read: Reader, ours: tuple[str, ...]) -> None:
        self._arguments = (path, key, read, ours)
        self.label, self._read = f"{key}: {path}", read
        self.nothing: Any = [] if read is as_steps else 0.0
        self._function = load(path, key, ours)

    def __call__(self, arguments: dict[str, Any]) -> list[Any]:
        """The entry of each completion; raises what the function raises, and UserError for an entry that is none."""
        return self._read(self.label, self._function(**arguments), len(arguments["completions"]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments  # imported again, as pickle finds only functions that bear their own name

    @property
    def source(self) -> str:
        """The file of the definition, empty where Python does not know it."""
        try:
            return inspect.getsourcefile(inspect.unwrap(self._function)) or ""
        except (OSError, TypeError):
            return ""

    @property
    def place(self) -> str:
        """File and line of the definition, empty where Python does not know them."""
        try:
            return f"{self.source}:{inspect.getsourcelines(inspect.unwrap(self._function))[1]}"
        except (OSError, TypeError):
            return ""


def load(path: str, key: str, ours: Iterable[str]) -> Callable[..., Any]:
    """The function at an import path, in the current folder too; raises UserError where there is none."""
    if "" not in sys.path:  # `python -m` looks there, a console script does not
        sys.path.append("")
    module, _, attribute = path.rpartition(".")
    try:
        function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the module is code of others
        raise UserError(
            f"{key} names {path!r}, which cannot be imported ({described(error)}); it must be one of "
            f"{', '.join(ours)}, or an import path module.function."
        ) from error
    if not callable(function):
        raise UserError(f"{key} names {path!r}, which is a {type(function).__name__}, not a function.")
    return function


def call_arguments(rollout: Rollout) -> dict[str, list[Any]]:
    """Keyword arguments of a function: prompts, completions and columns, each a list over completions.

    An example without a column has None there. Prompts and completions are the policy's, whatever columns there are.
    """
    names = {str(key): key for example in rollout.examples for key in example.columns}
    columns = {name: [example.columns.get(key) for example in rollout.examples] for name, key in names.items()}
    return columns | {
        "prompts": list(rollout.prompts),
        "completions": list(rollout.completions),
        "answer": [example.answer for example in rollout.examples],
        "completion_ids": [ids for ids, _ in rollout.sequences.written()],
    }


def as_scores(label: str, returned: Any, count: int) -> list[float]:
    """A score for each completion; raises UserError that names the function, the completion and what it got."""
    scores = []
    for index, score in enumerate(entries(label, returned, count)):
        try:
            scores.append(as_number(score))
        except ValueError as error:
            raise UserError(
                f"{label} returned {shown(score)} for completion {index}; it must be a finite number, of 32 bits."
            ) from error
    return scores


def as_steps(label: str, returned: Any, count: int) -> list[Steps]:
    """(end, score) of each step of each completion; raises UserError as above."""
    found: list[Steps] = []
    for index, steps in enumerate(entries(label, returned, count)):
        found.append([])
        for step in entries(label, steps, None, f" for completion {index}; it must be a list of (end, score)."):
            try:
                end, score = map(as_number, step)
                if end < 1:
                    raise ValueError
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"{label} returned the step {shown(step)} for completion {index}; a step ends after at least one "
                    "character and has a finite score."
                ) from error
            found[-1].append((int(end), score))
    return found


def entries(label: str, returned: Any, count: int | None, wanted: str = "") -> list[Any]:
    """What a function returned, as a list; raises UserError where it is none, or its length is not `count`."""
    try:
        found = list(returned)
    except TypeError as error:
        wanted = wanted or f"; it must return a list with one entry for each of the {count} completions."
        raise UserError(f"{label} returned {shown(returned)}{wanted}") from error
    if count is not None and len(found) != count:
        raise UserError(f"{label} returned {len(found)} entries for {count} completions.")
    return found


def shown(value: Any) -> str:
    """A value in a sentence."""
    return " ".join(reprlib.repr(value).split())
