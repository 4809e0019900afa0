"""Rows of a noun: selected, joined and mapped alike for every dataclass of tensors, lists and nested nouns.

A noun whose rows need more than that has methods `select` and `concatenate` of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Scalar = Tensor | float  # a scalar of a statistic: a tensor on its device until `numbers` has fetched it


def fieldwise(function: Callable[..., Any], noun: Any, *arguments: Any) -> Any:
    """A dataclass of the same class, each of whose fields is the function's result for the field of `noun`."""
    return replace(noun, **{each.name: function(getattr(noun, each.name), *arguments) for each in fields(noun)})


def select(noun: T, rows: slice | Tensor) -> T:
    """The given rows of a noun: of every tensor, list and nested noun in it. What all rows share stays as it is.

    `rows` is a slice, which gives views of tensors, or an int64 tensor of whole groups.
    """
    selected: Any = noun
    if isinstance(noun, Tensor):
        selected = noun[rows]
    elif isinstance(noun, list):
        selected = noun[rows] if isinstance(rows, slice) else [noun[number] for number in rows.tolist()]
    elif isinstance(noun, dict):
        selected = {key: select(value, rows) for key, value in noun.items()}
    elif hasattr(noun, "select"):
        selected = noun.select(rows)
    elif is_dataclass(noun):
        selected = fieldwise(select, noun, rows)
    return selected  # type: ignore[no-any-return]


def concatenate(nouns: list[T]) -> T:
    """Nouns of one kind as one, row after row; narrower tensors are padded with zeros on the right.

    What all rows share is the first noun's.
    """
    parts: list[Any] = nouns
    joined = first = parts[0]
    if len(parts) == 1:
        return nouns[0]
    if isinstance(first, Tensor):
        width = max(x.shape[-1] for x in parts)
        joined = torch.cat([pad_columns(x, right=width - x.shape[1]) if x.dim() > 1 else x for x in parts])
    elif isinstance(first, list):
        joined = list(chain.from_iterable(parts))
    elif isinstance(first, dict):
        joined = {key: concatenate([part[key] for part in parts]) for key in first}
    elif hasattr(first, "concatenate"):
        joined = first.concatenate(parts)
    elif is_dataclass(first):
        columns = {each.name: [getattr(part, each.name) for part in parts] for each in fields(first)}
        joined = replace(first, **{name: concatenate(column) for name, column in columns.items()})  # type: ignore[type-var]
    return joined  # type: ignore[no-any-return]


def map_tensors(function: Callable[[Tensor], Any], noun: Any) -> Any:
    """The noun with the function's result in the place of every tensor, in nested nouns, lists and dicts too."""
    if isinstance(noun, Tensor):
        return function(noun)
    if isinstance(noun, list | tuple):
        parts = (map_tensors(function, each) for each in noun)
        return noun._make(parts) if hasattr(noun, "_make") else type(noun)(parts)  # a NamedTuple, or another
    if isinstance(noun, dict):
        return {key: map_tensors(function, each) for key, each in noun.items()}
    return fieldwise(lambda each: map_tensors(function, each), noun) if is_dataclass(noun) else noun


def to_device(noun: T, device: torch.device) -> T:
    """The noun with all of its tensors on the device."""
    moved: T = map_tensors(lambda tensor: tensor.to(device), noun)
    return moved


def numbers(noun: T) -> T:
    """The noun with every scalar tensor in it as a Python number; it waits once per device, not once per scalar."""
    found: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
    map_tensors(lambda scalar: found[scalar.device].append(scalar.double()), noun)
    values = {device: iter(torch.stack(scalars).tolist()) for device, scalars in found.items()}
    fetched: T = map_tensors(lambda scalar: next(values[scalar.device]), noun)
    return fetched


def pad_columns(x: Tensor, left: int = 0, right: int = 0) -> Tensor:
    """x [S, N] with that many columns of zeros on either side."""
    return torch.nn.functional.pad(x, (left, right)) if left or right else x


def columns_first(mask: Tensor) -> Tensor:
    """Numbers [S, T] of each row's columns: those of the mask first, both parts in their order."""
    return (~mask).long().argsort(dim=1, stable=True)


def group_rows(groups: Tensor, group_size: int) -> Tensor:
    """Numbers of the rows of these groups."""
    return (groups[:, None] * group_size + torch.arange(group_size, device=groups.device)).flatten()
