"""From scores to experience: behaviour, reference and value passes, then rewards, then advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.algorithm import kl
from bakeoff.algorithm.loss import advantages_and_returns, place, with_kl_reward
from bakeoff.batch import Experience, Rollout, Scores, Sequences, masked_mean, micro_batches
from bakeoff.learner.state import Learner, Passes
from bakeoff.model import Precision
from bakeoff.model.forward import completion_logits, completion_values, logits_and_values, token_logprobs


@dataclass
class Evaluated:
    """What the no-gradient passes over a rollout give, all [S, T]; None where the pass was not needed.

    reference_kl is exact, over the whole vocabulary; it takes the logits of both models.
    """

    logprobs: Tensor | None
    reference_logprobs: Tensor | None
    reference_kl: Tensor | None
    values: Tensor | None


@torch.no_grad()
def evaluate(learner: Learner, sequences: Sequences, passes: Passes) -> Evaluated:
    """Runs the models that are needed over the sequences, a micro-batch at a time.

    The actor is among them where it has the value head, and where it computes in bfloat16: there sampling and
    training forward differ by percents a token. In float32 they agree to rounding, and the sampler's log-probs serve.
    """
    with_actor = learner.head is not None or learner.actor.precision is Precision.bfloat16
    parts: list[Evaluated] = []
    temperature = passes.temperature
    for rows in micro_batches(len(sequences), passes.micro_batch):
        part = sequences[rows]
        logprobs = values = logits = reference_logprobs = reference_kl = None
        if with_actor:
            logits, values = logits_and_values(learner.actor, learner.head, part, temperature)
            logprobs = token_logprobs(logits, part.completion_ids)
        if learner.reference is not None:
            reference_logits = completion_logits(learner.reference, part, temperature)
            reference_logprobs = token_logprobs(reference_logits, part.completion_ids)
            reference_kl = None if logits is None else kl.exact(logits, reference_logits)
        if learner.critic is not None:
            values = completion_values(learner.critic, part)
        parts.append(Evaluated(logprobs, reference_logprobs, reference_kl, values))

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    return Evaluated(*(joined(name) for name in Evaluated.__dataclass_fields__))


def make_experience(
    learner: Learner, rollout: Rollout, scores: Scores, greedy: Tensor | None, passes: Passes
) -> tuple[Experience, dict[str, float]]:
    """The experience of a rollout, and statistics of it under their metric names.

    `greedy` [P] are the scores of the prompts' greedy completions, where the baseline asks for them.
    """
    sequences, algorithm = rollout.sequences, learner.algorithm
    mask = sequences.mask
    evaluated = evaluate(learner, sequences, passes)
    behaviour = rollout.sampler_logprobs if evaluated.logprobs is None else evaluated.logprobs
    outcome = scores.outcome + algorithm.shaping(mask.sum(1), passes.max_tokens)
    rewards = place(outcome, mask, rollout.group_size, scores.steps, greedy)
    rewards = with_kl_reward(algorithm, rewards, learner.betas.reference, behaviour, evaluated.reference_logprobs)
    advantages, returns = advantages_and_returns(algorithm, rewards, evaluated.values)
    mean = masked_mean(advantages, mask)
    statistics: dict[str, Tensor | float] = {
        "policy/entropy": masked_mean(rollout.entropy, mask),
        "advantage/mean": mean,
        "advantage/std": masked_mean((advantages - mean).square(), mask).sqrt(),
        "kl/beta_reference": learner.betas.reference,
        "kl/beta_behaviour": learner.betas.behaviour,
    }
    if evaluated.logprobs is not None:
        statistics["rollout/sampler_mismatch"] = masked_mean((behaviour - rollout.sampler_logprobs).abs(), mask)
    if evaluated.reference_logprobs is not None:
        statistics |= kl_statistics("reference", behaviour, evaluated.reference_logprobs, mask)
    if evaluated.reference_kl is not None:
        statistics["kl/reference_exact_per_token"] = masked_mean(evaluated.reference_kl, mask)
    if evaluated.values is not None and returns is not None:
        statistics["critic/explained_variance"] = explained_variance(evaluated.values, returns, mask)
        statistics["critic/value_mean"] = masked_mean(evaluated.values, mask)
    experience = Experience(
        sequences=sequences,
        behaviour_logprobs=behaviour,
        advantages=advantages,
        reference_logprobs=evaluated.reference_logprobs,
        values=evaluated.values,
        returns=returns,
    )
    return experience, {name: float(value) for name, value in statistics.items()}


def kl_statistics(name: str, logprobs: Tensor, other: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """k1, k2 and k3 of KL(p‖q) for samples of p, in nats per token and summed per sequence."""
    statistics = {}
    for estimator in kl.Estimator:
        terms = torch.where(mask, estimator(logprobs, other), 0.0)
        statistics[f"kl/{name}_{estimator.value}_per_token"] = masked_mean(terms, mask)
        statistics[f"kl/{name}_{estimator.value}_per_sequence"] = terms.sum(1).mean()
    return statistics


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V)/Var(R) over the mask; 0 where the returns do not vary."""
    returns, values = returns[mask], values[mask]
    variance = returns.var(correction=0)
    unexplained = (returns - values).var(correction=0)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), 0.0)
