"""Divergence of training: the error that names it, the checks that raise it, and the bound on exponents."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LARGEST_LOG_RATIO = 20.0  # e^20 = 4.9e8, whose square and product with any advantage are finite in float32


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


def exp_ratio(log_ratio: Tensor) -> Tensor:
    """e^log_ratio, flat above e^20: an overflow would make the gradient of a clipped token 0·∞, which is NaN.

    The bound of 20 is verl's, and ours only in that log-ratios far below zero need none.
    """
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()


def finite_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Global 2-norm of the gradients, a scalar; raises Diverged where it is NaN or infinite."""
    norm = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of gradients in parts
    require_finite(norm, "the norm of the gradient")
    return norm
