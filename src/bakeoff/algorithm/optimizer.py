"""How a step is taken, and how many steps a rollout is used for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bakeoff.algorithm.divergence import finite_norm
from bakeoff.ranges import VAST, count, number, rate, share
from bakeoff.rows import Scalar


@dataclass
class Subproblem:
    """The minibatch that a step is taken on, as the step may query it.

    optimizer        holds the parameters; their gradients are those of the loss
    evaluate         () → loss and mean exact KL(π_old‖π_θ) in nats per token, at the current parameters; the first call
                     is at π_old
    fisher_product   (v, n) → F·v, one tensor per parameter, for F the mean Fisher information of the distributions of
                     at most n tokens (0: of all)
    """

    optimizer: torch.optim.Optimizer
    evaluate: Callable[[], tuple[float, float]] | None = None
    fisher_product: Callable[[list[Tensor], int], list[Tensor]] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass
class StepStatistics:
    """Statistics of every kind of step.

    gradient_norm      norm of the gradient before clipping
    gradient_clipped   1 where that is above the largest norm, else 0; none where no norm bounds the gradient
    """

    gradient_norm: Scalar
    gradient_clipped: Scalar | None = field(default=None, kw_only=True)


@dataclass
class TrustRegionStatistics(StepStatistics):
    """A step of TRPO: the metrics `policy/…`, which metrics.py defines. Defaults stand where no step was accepted."""

    cg_residual: Scalar
    predicted_improvement: Scalar
    actual_improvement: Scalar = 0.0
    step_norm: Scalar = 0.0
    step_kl: Scalar = 0.0
    backtracks: Scalar = 0.0
    accepted: Scalar = 0.0


@dataclass
class Optimizer:
    """Options of every kind of step. Epochs and minibatches are ours; every tuned value is in conf/tuned.

    epochs              number of passes over each rollout
    minibatches         number of parts of each epoch, one step each
    lr                  learning rate
    final_lr_share      the rate falls linearly with the used share of the budget, from lr to lr × this
    lr_warmup_updates   number of updates over which the rate first rises linearly
    """

    needs_whole_rollout: ClassVar[bool] = False
    tuned_key: ClassVar[str] = "lr"  # what a search tunes and `lr_factors` scale

    epochs: int = count(2, least=1, most=1000, unit="passes")
    minibatches: int = count(2, least=1, unit="minibatches")
    lr: float = rate(1e-6)
    final_lr_share: float = share(1.0)
    lr_warmup_updates: int = count(0, unit="updates")

    def create(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """torch's optimiser, which holds the parameters and the state of the steps."""
        raise NotImplementedError

    def __call__(self, problem: Subproblem) -> StepStatistics:
        """Takes one step and clears the gradients. Raises Diverged, and takes no step, for a gradient not finite."""
        raise NotImplementedError

    def scaled(self, factor: float) -> Self:
        """The option with its tuned value times a factor: the learning rate, or the radius of a trust region."""
        changed: dict[str, Any] = {self.tuned_key: factor * self.tuned}
        return replace(self, **changed)

    @property
    def tuned(self) -> float:
        """The value of `tuned_key`."""
        return float(getattr(self, self.tuned_key))

    def lr_factor(self, update: int, progress: float) -> float:
        """Factor of the learning rate at this update (from 0), `progress` of the budget used."""
        warm = min(1.0, (update + 1) / self.lr_warmup_updates) if self.lr_warmup_updates else 1.0
        return warm * (1 - (1 - self.final_lr_share) * min(progress, 1.0))


@dataclass
class GradientStep(Optimizer):
    """A step along the gradient, clipped to a global norm, as an optimiser of torch takes it.

    weight_decay        lr × this is the share by which a step shrinks each weight
    max_gradient_norm   largest norm of the gradient; 0: no clip
    """

    weight_decay: float = share(0.0)
    max_gradient_norm: float = number(1.0, least=0, most=VAST)

    def __call__(self, problem: Subproblem) -> StepStatistics:
        parameters = problem.parameters
        norm = finite_norm(p.grad for p in parameters if p.grad is not None)  # a NaN would reach every weight
        if self.max_gradient_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.max_gradient_norm, norm)
        problem.optimizer.step()
        problem.optimizer.zero_grad(set_to_none=True)
        clipped = (norm > self.max_gradient_norm).float() if self.max_gradient_norm else None
        return StepStatistics(norm, gradient_clipped=clipped)


@dataclass
class Adam(GradientStep):
    """AdamW (Loshchilov & Hutter 2019).

    beta1   decay of the gradient's first moment, per step
    beta2   decay of the gradient's second moment, per step
    """

    beta1: float = number(0.9, least=0, below=1)
    beta2: float = number(0.999, least=0, below=1)

    def create(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        # fused: the other implementations need scratch memory of the size of all weights
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)


@dataclass
class Adafactor(GradientStep):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): second moments by row and column, and no first moment.

    Its state is a few thousandths of AdamW's. As torch has it, which scales each step to the size of its weights.
    """

    def create(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass
class Trpo(Optimizer):
    """The natural gradient, as far as the KL allows: Schulman et al. 2015 (TRPO) appendix C.

    max_kl          δ, mean KL(π_old‖π_θ) in nats per token; 0.01 as in the paper
    cg_iterations   conjugate-gradient iterations on (F + damping)·x = g
    damping         multiple of the identity added to F, as in openai/baselines; the paper has none
    backtracks      maximum number of times the step is tried; if none is accepted, no step is taken
    backtrack       length of each try, as a share of the one before
    fisher_tokens   F is that of the first sequences of the rollout with at most this number of tokens; 0: of all. With
                    few, the conjugate gradient does not converge and steps are refused; the paper's tenth of the
                    samples is thousands.
    """

    needs_whole_rollout: ClassVar[bool] = True
    tuned_key: ClassVar[str] = "max_kl"

    epochs: int = count(1, least=1, most=1000, unit="passes")
    minibatches: int = count(1, least=1, unit="minibatches")
    lr: float = rate(1.0)
    max_kl: float = number(0.01, above=0, most=100, unit="nats per token")
    cg_iterations: int = count(10, least=1, most=10_000, unit="iterations")
    damping: float = number(0.1, least=0, most=VAST)
    backtracks: int = count(10, least=1, most=1000, unit="tries")
    backtrack: float = number(0.8, above=0, below=1)
    fisher_tokens: int = count(0, unit="tokens")

    def create(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Plain gradient descent, which has no state: it only holds the parameters, and scales the step by lr."""
        return torch.optim.SGD(parameters, lr=self.lr)

    def __call__(self, problem: Subproblem) -> TrustRegionStatistics:
        evaluate, fisher_product, parameters = problem.evaluate, problem.fisher_product, problem.parameters
        assert evaluate is not None
        assert fisher_product is not None
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
        norm = finite_norm(gradient)
        problem.optimizer.zero_grad(set_to_none=True)
        descent = [-g for g in gradient]

        def damped(v: list[Tensor]) -> list[Tensor]:
            return [fv + self.damping * x for fv, x in zip(fisher_product(v, self.fisher_tokens), v, strict=True)]

        direction, residual = conjugate_gradient(damped, descent, self.cg_iterations)
        curvature = dot(direction, damped(direction))
        length = (2 * self.max_kl / curvature.clamp(min=1e-20)).sqrt() * problem.optimizer.param_groups[0]["lr"]
        full = [length * x for x in direction]
        statistics = TrustRegionStatistics(norm, residual, predicted_improvement=dot(descent, full))
        before, _ = evaluate()
        start = [p.detach().clone() for p in parameters]
        for tried in range(self.backtracks):
            share = self.backtrack**tried
            move(parameters, start, full, share)
            after, kl = evaluate()
            if after < before and kl <= self.max_kl:
                return replace(
                    statistics,
                    actual_improvement=before - after,
                    step_norm=share * dot(full, full).sqrt(),
                    step_kl=kl,
                    backtracks=float(tried),
                    accepted=1.0,
                )
        move(parameters, start, full, 0.0)
        return replace(statistics, backtracks=float(self.backtracks))


@torch.no_grad()
def move(parameters: list[Tensor], start: list[Tensor], direction: list[Tensor], share: float) -> None:
    """Sets the parameters to start + share · direction; exactly to start where the share is zero."""
    for parameter, origin, way in zip(parameters, start, direction, strict=True):
        parameter.copy_(origin if share == 0 else origin + share * way)


def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Inner product of two vectors in parts, a scalar."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def conjugate_gradient(
    product: Callable[[list[Tensor]], list[Tensor]], b: list[Tensor], iterations: int, tolerance: float = 1e-10
) -> tuple[list[Tensor], Tensor]:
    """Solves A·x = b for a positive definite A given by its products; returns x and ‖b − A·x‖/‖b‖.

    Hestenes & Stiefel 1952. Vectors are lists of tensors.
    """
    x = [torch.zeros_like(part) for part in b]
    residual = [part.clone() for part in b]
    direction = [part.clone() for part in b]
    squared = size = dot(b, b)
    for _ in range(iterations):
        if squared <= tolerance * size:
            break
        image = product(direction)
        alpha = squared / dot(direction, image)
        x = [xi + alpha * d for xi, d in zip(x, direction, strict=True)]
        residual = [r - alpha * i for r, i in zip(residual, image, strict=True)]
        previous, squared = squared, dot(residual, residual)
        direction = [r + squared / previous * d for r, d in zip(residual, direction, strict=True)]
    return x, (squared / size.clamp(min=1e-30)).sqrt()
