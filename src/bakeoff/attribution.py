"""Whose memory, and what for: the code that allocates opens a scope, and the ledger reads it.

Role: a model of the run (actor, critic, reference, reward_model), or `data` for what belongs to none.
Kind: parameters, gradients, optimizer, activations, logits, kv_cache, other; `parked` is off the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

ROLES = ("actor", "critic", "reference", "reward_model", "data")
KINDS = ("parameters", "gradients", "optimizer", "activations", "logits", "kv_cache", "other")
PARKED = "parked"


class Label(NamedTuple):
    """To which cell of the ledger a tensor belongs."""

    role: str = "data"
    kind: str = "other"


_scope = [Label()]  # not by thread: autograd's device threads allocate for the scope of the thread that waits for them


@contextmanager
def attributed(role: str = "", kind: str = "") -> Iterator[None]:
    """What is allocated inside is of this role and kind; an empty one stays as it is outside."""
    outer = _scope[-1]
    _scope.append(Label(role or outer.role, kind or outer.kind))
    try:
        yield
    finally:
        _scope.pop()


def current_label() -> Label:
    """The innermost scope's."""
    return _scope[-1]
