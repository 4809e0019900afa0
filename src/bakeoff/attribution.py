"""Labels for memory accounting: the code that allocates opens a scope, and the ledger reads it.

Role: a model of the run (actor, critic, reference, reward_model), or `data` for tensors of no model.
Kind: parameters, gradients, optimizer, activations, logits, kv_cache, other; `parked` tensors are off the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

ROLES = ("actor", "critic", "reference", "reward_model", "data")
KINDS = ("parameters", "gradients", "optimizer", "activations", "logits", "kv_cache", "other")
PARKED = "parked"


class Label(NamedTuple):
    """The cell of the ledger that a tensor belongs to."""

    role: str = "data"
    kind: str = "other"


_scope = [Label()]  # process-wide on purpose: autograd's worker threads must see the caller's label


@contextmanager
def attributed(role: str = "", kind: str = "") -> Iterator[None]:
    """Labels allocations inside the context with this role and kind; an empty one keeps the outer label's."""
    outer = _scope[-1]
    _scope.append(Label(role or outer.role, kind or outer.kind))
    try:
        yield
    finally:
        _scope.pop()


def current_label() -> Label:
    """Label of the innermost scope."""
    return _scope[-1]
