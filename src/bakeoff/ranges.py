"""The range and the unit of a number in a configuration, as data on the field that holds it.

`validation.faults` reads them for every key, and docs/configuration.md lists them. NaN and infinity are in no range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

VAST = 10**9  # the end of most ranges: more than a machine holds or a person waits for; float32 has 7 digits


@dataclass(frozen=True)
class Range:
    """The values that a number may have; `unit` is empty where it has none."""

    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if math.isfinite(end))


def number(default: Any, **ends: Any) -> Any:
    """A field for a number, or for a list or dictionary of numbers (`default` is then the type), in the range `ends`.

    `ends` are the fields of `Range`.
    """
    kind = "default_factory" if isinstance(default, type) else "default"
    return field(**{kind: default}, metadata={"range": Range(**ends)})


def count(default: int, least: int = 0, most: int = VAST, unit: str = "") -> Any:
    """A field for a number of things."""
    return number(default, least=least, most=most, unit=unit)


def share(default: float) -> Any:
    """A field for a number from 0 to 1."""
    return number(default, least=0, most=1)


def rate(default: float) -> Any:
    """A field for a learning rate. It has no upper end: where that is, training diverges, which is an outcome."""
    return number(default, above=0)


def seed(default: Any = 0) -> Any:
    """A field for a seed, or for a list of them, as torch takes them: 63 bits."""
    return number(default, least=0, most=2**63 - 1)
