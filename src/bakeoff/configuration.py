"""Every key of a configuration, with default, range, unit and meaning: docs/configuration.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

from bakeoff.algorithm import AXES, Algorithm
from bakeoff.config import Config
from bakeoff.engine import ENGINES
from bakeoff.task import TASKS

HEAD = """# Configuration

Every key of a run. The default is that of the schema; the files in `conf/` (task, model, protocol, tuned values) set
others, and `bakeoff --cfg job` prints the result; `bakeoff --help WORD` prints the keys that contain a word, and
`bakeoff --help all` every key. A key that only some options of a group have, or whose default depends on the option,
names these options. NaN and infinity are in no range. `make docs` writes this page from the schemas.

| key | default | range | unit | meaning |
|---|---|---|---|---|
"""


def configuration_table() -> str:
    """docs/configuration.md."""
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in every_key())


def every_key() -> list[tuple[str, ...]]:
    """A row for each key: the key between backticks, its default, range, unit and meaning."""
    groups: dict[str, dict[str, Any]] = {"task": dict(TASKS), "engine": dict(ENGINES)}
    lines = [row for axis, options in AXES.items() for row in rows(f"algorithm.{axis}.", options)]
    hints = get_type_hints(Config)
    page = rows("", {"": Config})
    for name, schema in hints.items():
        if schema is Algorithm:
            page += lines
        elif is_dataclass(schema):
            page += rows(f"{name}.", groups.get(name, {"": schema}))
    return page


def rows(group: str, options: dict[str, Any]) -> list[tuple[str, ...]]:
    """The keys of a group of options, by name: one row for each key, range and meaning."""
    found: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name, option in options.items():
        for key, field, value, meaning in keys(option, group):
            span = field.metadata.get("range")
            each = "each " if span and isinstance(value, list | dict) else ""
            words = f"{each}{span}" if span else possible(value)
            row = (f"`{key}`", words, (span and span.unit) or "–", meaning)
            found.setdefault(row, {}).setdefault(shown(value), []).append(name)
    page: list[tuple[str, ...]] = []
    for (key, words, unit, meaning), defaults in found.items():
        plain = [len(names) for names in defaults.values()] == [len(options)]
        texts = [text if plain else f"{text} ({', '.join(names)})" for text, names in defaults.items()]
        page.append((key, "; ".join(texts), words, unit, meaning))
    return page


def keys(option: Any, group: str) -> Iterator[tuple[str, Field[Any], Any, str]]:
    """Key, field, default and meaning of every value of a schema, or of an option with values of its own."""
    schema = option if isinstance(option, type) else type(option)
    meant = meanings(schema)
    for field in fields(schema):
        if field.default_factory is not MISSING:
            value = field.default_factory()
        else:
            value = field.default if isinstance(option, type) else getattr(option, field.name)
        if is_dataclass(value):
            if group:  # those of the configuration itself are groups of their own
                yield from keys(value, f"{group}{field.name}.")
        elif group or not is_dataclass(get_type_hints(schema)[field.name]):
            yield f"{group}{field.name}", field, value, meant[field.name]


def meanings(schema: type) -> dict[str, str]:
    """Meaning of each field: the lines `names   meaning` in the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        for names, meaning in re.findall(r"^([\w, ]+?)  +(\S.*(?:\n {4,}\S.*)*)", text, re.MULTILINE):
            found |= {name: " ".join(meaning.split()) for name in names.split(", ")}
    return found


def possible(value: Any) -> str:
    """The values that a key other than a number may have."""
    if isinstance(value, bool):
        return "true, false"
    if isinstance(value, Enum):
        return ", ".join(each.value for each in type(value))
    return "text" if isinstance(value, str) else f"a {type(value).__name__}"


def shown(value: Any) -> str:
    """A default as a user types it; a key that must be set has none."""
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, bool):
        return str(value).lower()
    return {"???": "–", "": "empty"}.get(value, str(value)) if isinstance(value, str) else f"{value or type(value)()}"


if __name__ == "__main__":
    print(configuration_table(), end="")
