"""Functions of a user, which score or measure completions: import, arguments, and what they return.

A function stands in a module (`my_rewards.brevity`) or in a file (`./my_rewards.py:brevity`, relative to the working
folder). It has the signature that TRL users know, `fn(prompts, completions, **columns) -> list[float]`; the columns are
`answer`, `completion_ids` and the columns of the examples. One without `**columns` receives those that it names. None
is the score of a completion to which a function does not apply. A function that scores steps takes the same arguments
and returns a list of (end, score) for each completion, where `end` is the number of characters up to the end of the
step. An `end` past the text means the EOS token; use it to score missing steps.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from bakeoff.batch import Rollout
from bakeoff.errors import UserError
from bakeoff.task.task import as_number
from bakeoff.user_code import FILE, anywhere, defined_at, load, signature, source_of

Steps = list[tuple[int, float]]
Reader = Callable[[str, Any, int], Any]


ALWAYS = ("prompts", "completions", "answer", "completion_ids")  # arguments of every call


class UserFunction:
    """The function at an import path or in a file, which is called with a list of completions.

    read      as_scores, as_steps for a function that scores steps, or as_values for a metric
    label     key and path, as the user wrote them
    name      module and name, under which its scores are logged
    place     label, file and line of the definition, as far as Python knows them
    nothing   the entry of a completion for which the function fails
    """

    def __init__(self, path: str, key: str, read: Reader, ours: tuple[str, ...]) -> None:
        in_file = FILE.fullmatch(path)
        self.label, self._read = f"{key}: {path}", read
        self.name = f"{Path(in_file['file']).stem}.{in_file['name']}" if in_file else path
        self.nothing: Any = [] if read is as_steps else 0.0
        self._function = load(path, key, ours)
        self._signature = signature(self._function, self.label)
        self._arguments = (anywhere(path), key, read, ours)
        self.place = self.label + (f" ({place})" if (place := defined_at(self._function)) else "")

    def __call__(self, arguments: dict[str, Any]) -> Any:
        """The entry of each completion, or a metric's values by name.

        Raises what the function raises, and UserError for a result of the wrong kind.
        """
        taken = {name: value for name, value in arguments.items() if self._signature.accepts(name)}
        return self._read(self.place, self._function(**taken), len(arguments["completions"]))

    def __reduce__(self) -> tuple[Any, ...]:
        # imported again, as pickle finds only functions that bear their own name; a worker may have another folder
        return type(self), self._arguments, {"label": self.label, "place": self.place, "name": self.name}

    @property
    def source(self) -> str:
        """The file of the definition; see `source_of`."""
        return source_of(self._function)

    def require(self, columns: Iterable[str]) -> None:
        """Raises UserError where the function needs an argument that neither every call nor the examples have."""
        there = [*ALWAYS, *(name for name in columns if name not in ALWAYS)]
        if needed := self._signature.missing(there):
            raise UserError(
                f"{self.place} needs the argument {', '.join(needed)}, but is called with {', '.join(there)}; name one "
                "of these, or give the argument a default."
            )


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


def as_scores(label: str, returned: Any, count: int) -> list[float | None]:
    """A score for each completion, None where the function does not apply to it.

    Raises UserError that names the function, the completion and the value.
    """
    scores = []
    for index, score in enumerate(entries(label, returned, count)):
        try:
            scores.append(None if score is None else as_number(score))
        except ValueError as error:
            raise UserError(
                f"{label} returned {shown(score)} for completion {index}; it must be a finite float32, or None where "
                "the function does not apply."
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


def as_values(label: str, returned: Any, count: int) -> dict[str, float]:
    """A metric's values by name, in which the empty name is the metric's own; raises UserError as above.

    A function returns a number, numbers by name, or a number for each completion, of which the value is the mean. None
    among them is left out.
    """
    if isinstance(returned, Mapping):
        names = [str(name) for name in returned]
        for name in names:
            if not re.fullmatch(r"[\w. -]+", name):
                raise UserError(f"{label} returned the name {shown(name)}; it must be of letters, digits and `_-. `.")
        numbers = as_scores(label, returned.values(), len(names))
        return {name: number for name, number in zip(names, numbers, strict=True) if number is not None}
    try:
        return {"": as_number(returned)}
    except ValueError:
        scores = [score for score in as_scores(label, returned, count) if score is not None]
        return {"": sum(scores) / len(scores)} if scores else {}


def entries(label: str, returned: Any, count: int | None, wanted: str = "") -> list[Any]:
    """What a function returned, as a list; raises UserError where it has no order, or its length is not `count`.

    A mapping, a set and a text can be iterated, but not by completion.
    """
    try:
        if isinstance(returned, Mapping | Set | str | bytes):
            raise TypeError
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
