"""KL: every estimator on the exact value, the sign, and both adaptive rules over scripted sequences."""

import math

import pytest
import torch

from bakeoff.algorithm import kl

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
EXACT = 0.5 * math.log(2.5) + 0.2 * math.log(0.4)


def test_exact_kl_of_two_categoricals():
    assert kl.exact(P.log(), Q.log()).item() == pytest.approx(EXACT, abs=1e-12)
    assert kl.exact(P.log() + 7, Q.log() - 3).item() == pytest.approx(EXACT, abs=1e-12)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_unbiased_estimators_cover_the_exact_kl(estimator):
    samples = torch.multinomial(P, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    terms = estimator(P.log()[samples], Q.log()[samples])
    assert abs(terms.mean().item() - EXACT) < 3 * (terms.std() / math.sqrt(len(terms))).item()


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_reversing_the_arguments_estimates_something_else(estimator):
    """The sign error of a widely read teaching codebase must not pass these tests."""
    skewed = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    right, wrong = ((skewed * estimator(*a)).sum() for a in ((skewed.log(), Q.log()), (Q.log(), skewed.log())))
    assert right.item() == pytest.approx(kl.exact(skewed.log(), Q.log()).item(), abs=1e-12)
    assert abs(wrong.item() - right.item()) > 0.1


def test_expectations_by_enumeration():
    assert (P * kl.k1(P.log(), Q.log())).sum().item() == pytest.approx(EXACT, abs=1e-12)
    assert (P * kl.k3(P.log(), Q.log())).sum().item() == pytest.approx(EXACT, abs=1e-12)
    by_hand = 0.5 * math.log(2.5) ** 2 / 2 + 0.2 * math.log(0.4) ** 2 / 2
    assert (P * kl.k2(P.log(), Q.log())).sum().item() == pytest.approx(by_hand, abs=1e-12)


def test_k2_has_the_gradient_of_the_kl():
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(kl.exact(logits, Q.log()), logits)
    logprobs = logits.log_softmax(0)
    (estimated,) = torch.autograd.grad((logprobs.exp().detach() * kl.k2(logprobs, Q.log())).sum(), logits)
    assert torch.allclose(true, estimated, atol=1e-12)


def test_behaviour_penalty_has_the_gradient_of_kl_old_new():
    """Samples are π_old's: the expectation of the penalty is β·KL(π_old‖π_θ), and so is its gradient."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(2.0 * kl.exact(P.log(), logits), logits)
    penalty = kl.Penalty().penalty(2.0, logits.log_softmax(0), P.log())
    (estimated,) = torch.autograd.grad((P * penalty).sum(), logits)
    assert torch.allclose(true, estimated, atol=1e-12)


def test_schulman_rule_over_a_scripted_sequence():
    rule, beta, seen = kl.AdaptivePenalty(beta=1.0, target_nats_per_token=0.01), 1.0, []
    for measured in [0.02, 0.016, 0.014, 0.01, 0.0067, 0.006, 0.001]:
        beta = rule.adapt(beta, measured)
        seen.append(beta)
    assert seen == [2, 4, 4, 4, 4, 2, 1]


def test_ziegler_controller_over_a_scripted_sequence():
    rule = kl.InRewardAdaptive(beta=0.1, target_nats_per_sequence=6, horizon_episodes=10_000)
    beta = 0.1
    for measured, factor in [(12, 1 + 0.2 * 0.0256), (6.6, 1 + 0.1 * 0.0256), (6, 1), (0, 1 - 0.2 * 0.0256)]:
        expected = beta * factor
        beta = rule.adapt(beta, measured, episodes=256)
        assert beta == pytest.approx(expected, rel=1e-12)
