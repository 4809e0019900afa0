"""Stands in for the libraries of a run where its schema alone is read: importing torch takes seconds.

Help and completion read the names, defaults and docstrings of dataclasses, and call nothing that computes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "peft", "mlflow", "pandas", "pyarrow", "numpy", "scipy"}
HEAVY |= {"reasoning_gym", "datasets", "math_verify", "jinja2", "matplotlib", "sqlalchemy"}
HEAVY |= {"nbclient", "nbconvert", "nbformat"}


class Name(type):
    """A class for every name of a library: a base, an annotation, a decorator that changes nothing."""

    def __getattr__(cls, name: str) -> Any:
        return name_of(name)

    def __call__(cls, *values: Any, **options: Any) -> Any:
        return values[0] if len(values) == 1 and callable(values[0]) else name_of(cls.__name__)

    def __getitem__(cls, key: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


def name_of(name: str) -> Any:
    """The class for a name; a special one raises AttributeError, since Python asks whether it is there."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(name, (), {})


class Library(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        return name_of(name)


class StandIn(MetaPathFinder, Loader):
    """Finds a `Library` for each of the heavy ones, and for their modules."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in HEAVY else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Library(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A library that stands in has nothing to execute."""


def stand_in() -> None:
    """From here on this process imports stand-ins for the heavy libraries. It must not run anything afterwards."""
    if not HEAVY & set(sys.modules):
        sys.meta_path.insert(0, StandIn())
