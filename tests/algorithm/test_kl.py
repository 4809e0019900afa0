"""KL: every estimator against the exact value, the sign, and both adaptive rules over scripted sequences."""

import math

import pytest
import torch

from bakeoff.algorithm import kl

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
EXACT = 0.5 * math.log(2.5) + 0.2 * math.log(0.4)


def test_the_exact_kl_has_its_closed_form_and_ignores_shifts_of_the_logits():
    assert kl.exact(P.log(), Q.log()).item() == pytest.approx(EXACT, abs=1e-12)
    assert kl.exact(P.log() + 7, Q.log() - 3).item() == pytest.approx(EXACT, abs=1e-12)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_sample_means_of_k1_and_k3_are_within_three_standard_errors_of_the_exact_kl(estimator):
    samples = torch.multinomial(P, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    terms = estimator(P.log()[samples], Q.log()[samples])
    assert abs(terms.mean().item() - EXACT) < 3 * (terms.std() / math.sqrt(len(terms))).item()


@pytest.mark.parametrize("estimator", [kl.k1, kl.k3])
def test_reversed_arguments_estimate_a_different_number(estimator):
    """A widely read teaching codebase has this sign error; it must not pass these tests."""
    skewed = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    right, wrong = ((skewed * estimator(*a)).sum() for a in ((skewed.log(), Q.log()), (Q.log(), skewed.log())))
    assert right.item() == pytest.approx(kl.exact(skewed.log(), Q.log()).item(), abs=1e-12)
    assert abs(wrong.item() - right.item()) > 0.1


def test_k1_and_k3_average_to_the_exact_kl_and_k2_to_half_the_squared_log_ratio():
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


def test_the_behaviour_penalty_has_the_gradient_of_the_kl_from_old_to_new():
    """For samples of π_old, the expected penalty is β·KL(π_old‖π_θ), and the expected gradient is that of the KL."""
    logits = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(2.0 * kl.exact(P.log(), logits), logits)
    penalty = kl.Penalty().penalty(2.0, logits.log_softmax(0), P.log())
    (estimated,) = torch.autograd.grad((P * penalty).sum(), logits)
    assert torch.allclose(true, estimated, atol=1e-12)


def test_the_schulman_rule_doubles_or_halves_beta_beyond_a_factor_of_1_5_from_the_target():
    rule, beta, seen = kl.AdaptivePenalty(beta=1.0, target_nats_per_token=0.01), 1.0, []
    for measured in [0.02, 0.016, 0.014, 0.01, 0.0067, 0.006, 0.001]:
        beta = rule.adapt(beta, measured)
        seen.append(beta)
    assert seen == [2, 4, 4, 4, 4, 2, 1]


def test_the_ziegler_controller_changes_beta_by_the_relative_error_clipped_at_a_fifth():
    rule = kl.InRewardAdaptive(beta=0.1, target_nats_per_sequence=6, horizon_episodes=10_000)
    beta = 0.1
    for measured, factor in [(12, 1 + 0.2 * 0.0256), (6.6, 1 + 0.1 * 0.0256), (6, 1), (0, 1 - 0.2 * 0.0256)]:
        expected = beta * factor
        beta = rule.adapt(beta, measured, episodes=256)
        assert beta == pytest.approx(expected, rel=1e-12)
