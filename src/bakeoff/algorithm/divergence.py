"""Divergence of training: the error that names it, and the checks that raise it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Diverged(ArithmeticError):
    """Training has diverged: the message names the quantity that is NaN or infinite.

    of_critic   whether it is the critic's
    """

    def __init__(self, message: str, of_critic: bool = False) -> None:
        super().__init__(message)
        self.of_critic = of_critic


def require_finite(values: Tensor, quantity: str, of_critic: bool = False) -> None:
    """Raises Diverged, naming the quantity, where one of the values is NaN or infinite; waits once for their device."""
    if (~torch.isfinite(values)).any():  # not `not …all()`: a prediction's tensors answer every condition with false
        raise Diverged(f"{quantity} is not finite", of_critic)


def finite_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Global 2-norm of the gradients, a scalar; raises Diverged where it is NaN or infinite."""
    norm = nn.utils.get_total_norm(gradients)
    require_finite(norm, "the norm of the gradient")
    return norm
