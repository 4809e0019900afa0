"""Names: the one that a mistyped one stands for, and the one by which a registry has an option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

MOST = 3  # names that a message offers


def unknown(kind: str, name: str, known: Iterable[object], key: str = "") -> str:
    """`unknown arm grop; valid arms are grpo, ppo; did you mean grpo?`; `key` stands before each name, as `task=`."""
    names = [str(each) for each in known]
    return f"unknown {kind} {key}{name}; valid {kind}s are {', '.join(names)}{did_you_mean(nearest(name, names), key)}"


def name_of(option: object, options: Mapping[str, type]) -> str:
    """The name by which a registry has the option's class; the class's own where none has it."""
    return next((name for name, each in options.items() if each is type(option)), type(option).__name__)


def did_you_mean(names: list[str], key: str = "") -> str:
    """The end of a sentence: `; did you mean grpo?`, or a full stop where no name is near."""
    return f"; did you mean {' or '.join(f'{key}{name}' for name in names)}?" if names else "."


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The known name that is most like this one, as a list of at most one."""
    lower = {each.lower(): each for each in known}
    return [lower[each] for each in get_close_matches(name.lower(), lower, 1, cutoff)]


def nearest_keys(typed: str, known: Iterable[str]) -> list[str]:
    """The keys that `typed` stands for: those that end with it, or one that is like it.

    A key of the same group is closest, then one that is like it as a whole, then one whose last part is.
    """
    keys = list(known)
    group, _, last = typed.rpartition(".")
    if ends := [key for key in keys if key.endswith(f".{typed}")]:
        return sorted(ends, key=len)[:MOST]
    parts = [(key, *key.rpartition(".")[::2]) for key in keys]
    siblings = {own: key for key, above, own in parts if above == group}
    by_last = {own: key for key, _, own in reversed(parts)}
    found = [siblings[own] for own in nearest(last, siblings)] or nearest(typed, keys, 0.8)
    return found or [by_last[own] for own in nearest(last, by_last, 0.8)]
