"""Jinja templates over the columns of a row: data is text there, and every run gets the same."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bakeoff.errors import UserError
from bakeoff.task.table import Row, checked, fault

if TYPE_CHECKING:
    from jinja2 import Template

RESERVED = {"self", "super", "true", "false", "none", "True", "False", "None"}  # a column of that name is never read


def compiled(key: str, source: str, columns: list[str]) -> Template:
    """A Jinja template in the sandbox in which transformers compiles chat templates: data is text there, never code.

    Raises UserError for a template that draws, and for a column whose name is a word of Jinja's.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=written
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "sort_keys": True}
    drawing = draws(source)
    if drawing and drawing not in columns:
        raise UserError(
            f"{key} is {source!r}, in which '{drawing}' draws at random; it must give the same in every run."
        )
    if taken := next((word for word in names(source) if word in columns and word in RESERVED), ""):
        raise UserError(f"{key} is {source!r}, but '{taken}' is a word of Jinja's; rename the column of that name.")
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise UserError(f"{key} is {source!r}, which is not a Jinja template ({error}).") from error


def names(source: str) -> list[str]:
    """The names, operators and strings of a template's tags, in order; none of a text that is not a template."""
    from jinja2 import Environment, TemplateError

    try:
        tokens = [(kind, text) for _, kind, text in Environment().lex(source)]
    except TemplateError:  # whoever compiles it says so
        return []
    return [text for kind, text in tokens if kind in ("name", "operator", "string")]


@lru_cache(maxsize=16)
def draws(source: str) -> str:
    """The word of a template that draws at random, from a generator that no seed reaches; empty where none does."""
    words = ["", "", *names(source)]
    for before, last, word in zip(words, words[1:], words[2:], strict=False):
        filters = last in ("|", "filter") or (before == "map" and last == "(")
        if (filters and word.strip("'\"") == "random") or (last != "." and word == "lipsum"):
            return word.strip("'\"")
    return ""


class Written:
    """A number of a file that remembers its text, also in filters such as join, which `finalize` does not see."""

    _text: str

    def __str__(self) -> str:
        return self._text


class WrittenInt(Written, int):
    """An integer of a file."""


class WrittenFloat(Written, float):
    """A float of a file; as a text, one that is not finite stands for a value that is missing."""

    def __str__(self) -> str:
        if wrong := fault(float(self)):
            raise ValueError(f"it writes {wrong}")
        return self._text


def remembering(value: Any, text: Any) -> Any:
    """A value of a row whose numbers remember the texts that stand in the file; arithmetic works on them as ever."""
    if isinstance(value, dict):
        return {key: remembering(each, text[key]) for key, each in value.items()}
    if isinstance(value, list):
        return [remembering(each, of) for each, of in zip(value, text, strict=True)]
    if type(value) not in (int, float):
        return value
    number = WrittenInt(value) if type(value) is int else WrittenFloat(value)
    number._text = str(text)
    return number


def written(value: Any) -> str:
    """The text that a template writes for a value, by the rules of a column; raises ValueError where there is none."""
    if value is None:
        raise ValueError("it writes a column that is missing or null here; {% if column %} leaves it out")
    text = str(value)  # which raises for a name that is no column
    if wrong := fault(value):
        filtered = "" if isinstance(value, float) else "; a filter such as join or string makes it one"
        raise ValueError(f"it writes {wrong}{filtered}")
    return text


def rendered(template: Template, columns: list[str], row: Row) -> str:
    """The template's text for a row; raises ValueError where a column is missing or the template fails."""
    try:
        return checked(template.render(dict.fromkeys(columns) | remembering(row.values, row.written)))
    except Exception as error:  # whatever a template does to a value
        raise ValueError(f"{type(error).__name__}: {error}; the columns are {', '.join(columns)}") from error
