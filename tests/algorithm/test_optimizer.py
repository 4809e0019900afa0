"""Conjugate gradient against a dense solve, the bounds of a trust-region step, and gradient steps."""

import math

import pytest
import torch

from bakeoff.algorithm import AXES
from bakeoff.algorithm.divergence import Diverged
from bakeoff.algorithm.optimizer import Adafactor, Adam, Subproblem, Trpo, conjugate_gradient


def positive_definite(size, seed=0):
    draw = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw @ draw.T + 0.5 * torch.eye(size, dtype=torch.float64)


def parts(vector):
    """The vector as a list of tensors, like the parameters of a model."""
    return [vector[:2].view(1, 2), vector[2:]]


def whole(tensors):
    return torch.cat([x.flatten() for x in tensors])


def test_conjugate_gradient_converges_to_the_dense_solution():
    matrix, b = positive_definite(7), torch.arange(1, 8, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: parts(matrix @ whole(v)), parts(b), iterations=30, tolerance=1e-24)
    assert torch.allclose(whole(x), torch.linalg.solve(matrix, b), atol=1e-9)
    assert residual < 1e-9


def test_the_residual_of_few_iterations_is_reported():
    matrix, b = positive_definite(7), torch.arange(1, 8, dtype=torch.float64)
    x, residual = conjugate_gradient(lambda v: parts(matrix @ whole(v)), parts(b), iterations=2)
    true = (b - matrix @ whole(x)).norm() / b.norm()
    assert residual.item() == pytest.approx(true.item(), rel=1e-9)
    assert residual > 1e-3


class Quadratic:
    """Problem with loss g·θ and KL ½ θᵀFθ around a start at zero: the effect of a step has a closed form."""

    def __init__(self, kl_scale=1.0, loss_sign=1.0):
        self.fisher = positive_definite(5)
        self.gradient = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5], dtype=torch.float64)
        self.parameters = [torch.nn.Parameter(p) for p in parts(torch.zeros(5, dtype=torch.float64))]
        for parameter, g in zip(self.parameters, parts(self.gradient), strict=True):
            parameter.grad = g.clone()
        self.kl_scale, self.loss_sign = kl_scale, loss_sign

    def evaluate(self):
        theta = whole([p.detach() for p in self.parameters])
        loss, kl = self.gradient @ theta, 0.5 * theta @ self.fisher @ theta
        return float(self.loss_sign * loss), float(self.kl_scale * kl)

    def take(self, **values):
        step = Trpo(damping=0.0, cg_iterations=30, **values)
        optimizer = step.create(self.parameters)
        product = lambda v, tokens: parts(self.fisher @ whole(v))  # noqa: E731
        return step(Subproblem(optimizer, self.evaluate, product))


def test_a_trust_region_step_is_the_natural_gradient_scaled_to_the_bound():
    """The step is √(2δ/gᵀF⁻¹g)·(−F⁻¹g), times 0.8 if rounding lifts the KL of the full step above δ."""
    problem = Quadratic()
    statistics = problem.take(max_kl=0.02)
    natural = -torch.linalg.solve(problem.fisher, problem.gradient)
    full = natural * (2 * 0.02 / -(problem.gradient @ natural)).sqrt()
    taken = whole([p.detach() for p in problem.parameters])
    share = 0.8**statistics.backtracks
    assert statistics.backtracks <= 1
    assert torch.allclose(taken, share * full, atol=1e-9)
    assert statistics.step_kl == pytest.approx(0.02 * share**2, rel=1e-6)
    assert statistics.actual_improvement == pytest.approx(share * float(statistics.predicted_improvement), rel=1e-9)
    assert all(p.grad is None for p in problem.parameters)


def test_a_step_backtracks_until_its_kl_is_within_the_bound():
    """A KL five times the quadratic needs 0.8^(2k) ≤ 1/5: four backtracks."""
    problem = Quadratic(kl_scale=5.0)
    statistics = problem.take(max_kl=0.02)
    assert statistics.backtracks == 4
    assert statistics.step_kl <= 0.02


@pytest.mark.parametrize("problem", [Quadratic(kl_scale=1e6), Quadratic(loss_sign=-1.0)], ids=["KL", "loss"])
def test_a_rejected_step_leaves_the_parameters_bit_for_bit(problem):
    with torch.no_grad():
        for parameter in problem.parameters:
            parameter.add_(0.1)
    before = [p.detach().clone() for p in problem.parameters]
    statistics = problem.take(max_kl=0.02)
    assert statistics.accepted == 0
    assert statistics.step_norm == 0
    assert all(torch.equal(p, b) for p, b in zip(problem.parameters, before, strict=True))


@pytest.mark.parametrize("step", [Adam(lr=0.05), Adafactor(lr=0.05)], ids=["adam", "adafactor"])
def test_a_gradient_step_lowers_the_loss_and_reports_the_norm_before_clipping(step):
    weight = torch.nn.Parameter(torch.full((30, 20), 2.0))
    optimizer = step.create([weight])
    norms = []
    for _ in range(100):
        weight.square().sum().backward()
        norms.append(float(step(Subproblem(optimizer)).gradient_norm))
        assert weight.grad is None
    assert norms[0] == pytest.approx(4 * 600**0.5), "the norm before clipping"
    assert weight.square().sum() < 0.3 * 2400


def test_adafactor_keeps_rows_and_columns_where_adam_keeps_two_copies():
    kept = {}
    for step in (Adam(), Adafactor()):
        weight = torch.nn.Parameter(torch.ones(30, 20))
        optimizer = step.create([weight])
        weight.sum().backward()
        step(Subproblem(optimizer))
        kept[type(step)] = sum(value.numel() for value in optimizer.state[weight].values())
    assert kept == {Adam: 2 * 600 + 1, Adafactor: 30 + 20 + 1}


@pytest.mark.parametrize("name", AXES["optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_every_optimizer_refuses_a_gradient_whose_norm_is_not_finite(name, value):
    """One element is enough; elements of 1e30 are finite, but their norm is not."""
    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    step = AXES["optimizer"][name]
    problem = Subproblem(step.create(weights), lambda: (0.0, 0.0), lambda vector, tokens: vector)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    weights[1].grad[0, 1] = value
    with pytest.raises(Diverged, match="the norm of the gradient is not finite"):
        step(problem)
    assert all(torch.equal(weight, torch.ones_like(weight)) for weight in weights)
