"""From scores to experience: behaviour, reference and value passes, then rewards, then advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.divergence import exp_ratio, require_finite
from bakeoff.algorithm.kl import KLEstimates, estimate_kl, k3
from bakeoff.algorithm.loss import advantages_and_returns, place_scores, with_kl_reward
from bakeoff.batch import Experience, Rollout, Scores, Sequences, masked_mean, masked_variance
from bakeoff.learner.learner import Learner
from bakeoff.model.forward import completion_hidden, completion_values, values_of
from bakeoff.model.logprobs import completion_logprobs, logprobs_and_kl, policy_pass
from bakeoff.model.micro_batches import own_micro_batches
from bakeoff.rows import Scalar, select


@dataclass
class ForwardPasses:
    """Results of the no-gradient passes over a rollout, all [S, T]; none where the pass was not needed.

    reference_kl   exact KL(π_old‖π_ref) over the whole vocabulary; it requires the logits of both models
    """

    logprobs: Tensor | None = None
    values: Tensor | None = None
    reference_logprobs: Tensor | None = None
    reference_kl: Tensor | None = None


@dataclass
class ExperienceStatistics:
    """Scalars of an experience before the update: metrics, which metrics.py defines.

    reference   KL(π_old‖π_ref), where the method has a reference; in an update's statistics that to the start
    teacher     in an update's statistics, KL(π_old‖π_ref) where the reference is a teacher
    """

    advantage_mean: Scalar
    advantage_std: Scalar
    advantage_zero: Scalar
    shaped: Scalar
    entropy: Scalar | None = None
    sampler: Mismatch | None = None
    correction_mean: Scalar | None = None
    correction_bounded: Scalar | None = None
    reference: KLEstimates | None = None
    teacher: KLEstimates | None = None
    reference_exact: Scalar | None = None
    explained_variance: Scalar | None = None
    value_mean: Scalar | None = None


@dataclass
class Mismatch:
    """How far π_old is from the sampler, over the tokens that the sampler drew: metrics, which metrics.py defines."""

    mismatch: Scalar
    k3: Scalar
    chi2: Scalar
    perplexity_ratio: Scalar


def mismatch(behaviour: Tensor, sampler: Tensor, mask: Tensor) -> Mismatch:
    """The mismatch of log π_old and log π_sampler, both [S, T]."""
    log_ratio = torch.where(mask, behaviour - sampler, 0.0)
    return Mismatch(
        mismatch=masked_mean(log_ratio.abs(), mask),
        k3=masked_mean(k3(sampler, behaviour), mask),
        chi2=masked_mean(exp_ratio(2 * log_ratio), mask) - 1,
        perplexity_ratio=masked_mean(-log_ratio, mask).exp(),
    )


@torch.no_grad()
def forward_passes(learner: Learner, sequences: Sequences, exact_logprobs: bool) -> ForwardPasses:
    """Runs the models that are needed over the sequences, a micro-batch at a time, each process over its rows.

    The actor is among them where it has the value head, and where the engine's log-probs are not exact.
    """
    with_actor = learner.head is not None or not exact_logprobs
    parts: list[ForwardPasses] = []
    for rows in own_micro_batches(sequences, learner.forward):
        part = select(sequences, rows)
        parts.append(policy_passes(learner, part, with_actor))
        if learner.critic is not None:
            parts[-1].values = completion_values(learner.critic, part)
    return processes.joined(parts, sequences.mask.device)


def policy_passes(learner: Learner, part: Sequences, with_actor: bool) -> ForwardPasses:
    """Actor and reference log-probs for one micro-batch; hidden states are freed on return."""
    actor, forward = learner.actor, learner.forward
    reference = learner.reference if learner.algorithm.kl_to_reference.needs_reference else None
    if not with_actor:
        logprobs = None if reference is None else completion_logprobs(reference, part, forward)
        return ForwardPasses(reference_logprobs=logprobs)
    if reference is None:
        own = policy_pass(actor, learner.head, part, forward)
        return ForwardPasses(own.logprobs, own.values)
    hidden, other = completion_hidden(actor.trunk, part), completion_hidden(reference.trunk, part)
    values = None if learner.head is None else values_of(learner.head, hidden)
    mine, its, kl = logprobs_and_kl(actor, reference, hidden, other, forward)
    return ForwardPasses(mine, values, its, kl)


@torch.no_grad()
def policy_entropy(learner: Learner, sequences: Sequences) -> Tensor:
    """Entropy [S, T] of the policy at every token, for a method that adapts to it and an engine that knows none."""
    parts = []
    for rows in own_micro_batches(sequences, learner.forward):
        own = policy_pass(learner.actor, None, select(sequences, rows), learner.forward, with_entropy=True)
        assert own.entropy is not None
        parts.append(own.entropy)
    return processes.joined(parts, sequences.mask.device)


def make_experience(
    learner: Learner,
    rollout: Rollout,
    scores: Scores,
    greedy: Tensor | None,
    exact_logprobs: bool,
    draws: torch.Generator,
) -> tuple[Experience, ExperienceStatistics]:
    """The experience of a rollout, and its statistics.

    `greedy` [P] are the scores of the prompts' greedy completions, where the baseline asks for them; `exact_logprobs`
    says that the engine's log-probs serve as log π_old; `draws` are those of an objective that chooses tokens. Raises
    Diverged where a value of the critic is not finite.
    """
    sequences, algorithm = rollout.sequences, learner.algorithm
    mask, correction = sequences.mask, algorithm.correction
    passes = forward_passes(learner, sequences, exact_logprobs)
    if passes.values is not None:
        require_finite(torch.where(mask, passes.values, 0.0), "a value of the critic", of_critic=True)
    behaviour = rollout.sampler_logprobs if passes.logprobs is None else passes.logprobs
    shaped = algorithm.shaping(mask.sum(1), rollout.max_tokens)
    rewards = place_scores(scores.outcome + shaped, mask, rollout.group_size, scores.process, greedy)
    rewards = with_kl_reward(algorithm, rewards, learner.betas.reference, behaviour, passes.reference_logprobs)
    advantages, returns = advantages_and_returns(algorithm, rewards, passes.values)
    entropy = rollout.entropy
    if entropy is None and algorithm.entropy.adapts:
        entropy = policy_entropy(learner, sequences)
    weights = correction(behaviour, rollout.sampler_logprobs, mask) if correction.corrects else None
    experience = Experience(
        sequences=sequences,
        behaviour_logprobs=behaviour,
        advantages=advantages,
        max_tokens=rollout.max_tokens,
        entropy=entropy,
        chosen=algorithm.objective.choose(advantages, behaviour, mask, draws),
        correction=None if weights is None else weights.weight,
        reference_logprobs=passes.reference_logprobs,
        values=passes.values,
        returns=returns,
    )
    statistics = experience_statistics(experience, rollout, passes, shaped)
    if weights is not None:
        statistics.correction_mean = masked_mean(weights.weight, mask)
        statistics.correction_bounded = masked_mean(weights.bounded.float(), mask)
    return experience, statistics


def experience_statistics(
    experience: Experience, rollout: Rollout, passes: ForwardPasses, shaped: Tensor
) -> ExperienceStatistics:
    """Scalars of an experience, whose scores were `shaped` [S]; they stay on its device."""
    mask, behaviour = experience.sequences.mask, experience.behaviour_logprobs
    reference, values, returns = experience.reference_logprobs, experience.values, experience.returns

    def mean(x: Tensor | None) -> Tensor | None:
        return None if x is None else masked_mean(x, mask)

    return ExperienceStatistics(
        advantage_mean=masked_mean(experience.advantages, mask),
        advantage_std=masked_variance(experience.advantages, mask).sqrt(),
        advantage_zero=masked_mean((experience.advantages == 0).float(), mask),
        shaped=(shaped != 0).float().mean(),
        entropy=mean(experience.entropy),
        sampler=None if passes.logprobs is None else mismatch(behaviour, rollout.sampler_logprobs, mask),
        reference=None if reference is None else estimate_kl(behaviour, reference, mask),
        reference_exact=mean(passes.reference_kl),
        explained_variance=None if values is None or returns is None else explained_variance(values, returns, mask),
        value_mean=mean(values),
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V)/Var(R) over the mask; 0 where the returns do not vary."""
    variance, unexplained = masked_variance(returns, mask), masked_variance(returns - values, mask)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), 0.0)
