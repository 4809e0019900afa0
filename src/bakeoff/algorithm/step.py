"""How the step is taken, and how often a rollout is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    """The global 2-norm of the gradients, a scalar; raises Diverged where it is NaN or infinite."""
    norm = nn.utils.get_total_norm(gradients)
    require_finite(norm, "the norm of the gradient")
    return norm


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Clips the gradients to a global norm (0: no clip); returns the norm before clipping, a scalar.

    Raises Diverged where that is NaN or infinite: one such step would make every weight NaN.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = finite_norm(p.grad for p in parameters if p.grad is not None)
    if max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@dataclass
class Subproblem:
    """What a step may ask of the minibatch that it is taken on.

    optimizer        holds the parameters; their gradients are those of the loss
    evaluate         () → loss and mean KL(π_old‖π_θ) in nats per token, at the parameters as they are
    fisher_product   (v, n) → F·v, a tensor a parameter, for F the mean Fisher information of the distributions of
                     at most n tokens (0: of all)
    """

    optimizer: torch.optim.Optimizer
    evaluate: Callable[[], tuple[float, float]] | None = None
    fisher_product: Callable[[list[Tensor], int], list[Tensor]] | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass
class Step:
    """What every kind of step has. Epochs and minibatches are ours; every tuned value is in conf/tuned.

    epochs           how often each rollout is gone through
    minibatches      into how many parts each epoch is split, one step for each
    lr               learning rate
    final_lr_share   the rate goes linearly with the used share of the budget, from lr to lr × this
    warmup_updates   before that, it rises linearly over so many updates
    """

    needs_whole_rollout = False

    epochs: int = 2
    minibatches: int = 2
    lr: float = 1e-6
    final_lr_share: float = 1.0
    warmup_updates: int = 0

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """What holds the parameters and the state of the steps."""
        raise NotImplementedError

    def __call__(self, problem: Subproblem) -> dict[str, float | Tensor]:
        """Takes one step and clears the gradients; returns statistics by name.

        Raises Diverged, and takes no step, where the gradient is not finite.
        """
        raise NotImplementedError

    def lr_factor(self, update: int, progress: float) -> float:
        """What multiplies the learning rate at this update (from 0), `progress` of the budget used."""
        warm = min(1.0, (update + 1) / self.warmup_updates) if self.warmup_updates else 1.0
        return warm * (1 - (1 - self.final_lr_share) * min(progress, 1.0))


@dataclass
class GradientStep(Step):
    """A step along the gradient, clipped to a norm, as an optimiser takes it."""

    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0

    def __call__(self, problem: Subproblem) -> dict[str, float | Tensor]:
        norm = clip_gradients(problem.optimizer, self.max_gradient_norm)
        problem.optimizer.step()
        problem.optimizer.zero_grad(set_to_none=True)
        return {"gradient_norm": norm}


@dataclass
class Adam(GradientStep):
    """AdamW (Loshchilov & Hutter 2019)."""

    beta1: float = 0.9
    beta2: float = 0.999

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        # fused: the other implementations need scratch memory of the size of all weights
        return torch.optim.AdamW(parameters, lr=self.lr, betas=betas, weight_decay=self.weight_decay, fused=True)


@dataclass
class Adafactor(GradientStep):
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235): second moments by row and column, and no first moment.

    Its state is a few thousandths of AdamW's. As torch has it, which scales each step to the size of its weights.
    """

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(parameters, lr=self.lr, weight_decay=self.weight_decay)


@dataclass
class Trpo(Step):
    """The natural gradient, as far as the KL allows: Schulman et al. 2015 (TRPO) appendix C.

    max_kl          δ, mean KL(π_old‖π_θ) in nats per token; 0.01 as in the paper
    cg_iterations   conjugate-gradient iterations on (F + damping)·x = g
    damping         as in openai/baselines; the paper has none
    backtracks      so often the step is tried, times `backtrack` each time; if none is accepted, none is taken
    fisher_tokens   F is of the first sequences of the rollout with at most so many tokens; 0: of all. The
                    paper has a tenth of the samples.
    """

    needs_whole_rollout = True

    epochs: int = 1
    minibatches: int = 1
    lr: float = 1.0
    max_kl: float = 0.01
    cg_iterations: int = 10
    damping: float = 0.1
    backtracks: int = 10
    backtrack: float = 0.8
    fisher_tokens: int = 1024

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """Plain gradient descent, which has no state: it only holds the parameters, and scales the step by lr."""
        return torch.optim.SGD(parameters, lr=self.lr)

    def __call__(self, problem: Subproblem) -> dict[str, float | Tensor]:
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
        predicted = dot(descent, full)
        before, _ = evaluate()
        start = [p.detach().clone() for p in parameters]
        statistics: dict[str, float | Tensor] = {
            "gradient_norm": norm,
            "cg_residual": residual,
            "predicted_improvement": predicted,
        }
        for tried in range(self.backtracks):
            share = self.backtrack**tried
            move(parameters, start, full, share)
            after, kl = evaluate()
            if after < before and kl <= self.max_kl:
                return statistics | {
                    "step_norm": share * dot(full, full).sqrt(),
                    "actual_improvement": before - after,
                    "step_kl": kl,
                    "backtracks": float(tried),
                    "accepted": 1.0,
                }
        move(parameters, start, full, 0.0)
        nothing = dict.fromkeys(("step_norm", "actual_improvement", "step_kl", "accepted"), 0.0)
        return statistics | nothing | {"backtracks": float(self.backtracks)}


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
