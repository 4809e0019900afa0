"""How the step is taken, and how often a rollout is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def clipped_step(optimizer: torch.optim.Optimizer, max_gradient_norm: float) -> Tensor:
    """Clips the gradients to a global norm (0: no clip), takes the step, and clears them.

    Returns the norm before clipping, a scalar.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, max_gradient_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


@dataclass
class Step:
    """What every kind of step has. Epochs and minibatches are ours; every tuned value is in conf/tuned.

    epochs           how often each rollout is gone through
    minibatches      into how many parts each epoch is split, one step for each
    lr               learning rate of the actor
    final_lr_share   the rate goes linearly with the used share of the budget, from lr to lr × this
    warmup_updates   before that, it rises linearly over so many updates
    """

    epochs: int = 2
    minibatches: int = 2
    lr: float = 1e-6
    final_lr_share: float = 1.0
    warmup_updates: int = 0

    def optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimiser of the actor, or of a critic with a rate of its own."""
        raise NotImplementedError

    def __call__(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Takes one step on the gradients that are there; returns their norm."""
        raise NotImplementedError

    def lr_factor(self, update: int, progress: float) -> float:
        """What multiplies every learning rate at this update (from 0), `progress` of the budget used."""
        warm = min(1.0, (update + 1) / self.warmup_updates) if self.warmup_updates else 1.0
        return warm * (1 - (1 - self.final_lr_share) * min(progress, 1.0))


@dataclass
class Adam(Step):
    """AdamW (Loshchilov & Hutter 2019) with gradient clipping."""

    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0

    def optimizer(self, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=self.weight_decay, foreach=True)

    def __call__(self, optimizer: torch.optim.Optimizer) -> Tensor:
        return clipped_step(optimizer, self.max_gradient_norm)
