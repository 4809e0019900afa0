"""From scores to experience: behaviour, reference and value passes, then rewards, then advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.algorithm.kl import Estimator
from bakeoff.algorithm.loss import advantages_and_returns, place, with_kl_reward
from bakeoff.algorithm.step import require_finite
from bakeoff.batch import Experience, Rollout, Scores, Sequences, masked_mean, masked_variance, micro_batches, numbers
from bakeoff.learner.state import Learner, Passes
from bakeoff.model import Precision
from bakeoff.model.forward import completion_hidden, completion_values
from bakeoff.model.load import at_least_float32
from bakeoff.model.logprobs import completion_logprobs, logprobs_and_kl, logprobs_and_values


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
    parts: list[Evaluated] = []
    for rows in micro_batches(len(sequences), passes.micro_batch):
        part = policies_evaluated(learner, sequences[rows], passes)
        if learner.critic is not None:
            part.values = completion_values(learner.critic, sequences[rows])
        parts.append(part)

    def joined(name: str) -> Tensor | None:
        tensors = [getattr(part, name) for part in parts]
        return None if tensors[0] is None else torch.cat(tensors)

    return Evaluated(*(joined(name) for name in Evaluated.__dataclass_fields__))


def policies_evaluated(learner: Learner, part: Sequences, passes: Passes) -> Evaluated:
    """What actor and reference say of a micro-batch; the hidden states that they are compared by end here."""
    actor, reference, temperature, logits_mb = learner.actor, learner.reference, passes.temperature, passes.logits_mb
    with_actor = learner.head is not None or actor.precision is Precision.bfloat16
    if not with_actor:
        logprobs = None if reference is None else completion_logprobs(reference, part, temperature, logits_mb)
        return Evaluated(None, logprobs, None, None)
    if reference is None:
        logprobs, values = logprobs_and_values(actor, learner.head, part, temperature, logits_mb)
        return Evaluated(logprobs, None, None, values)
    hidden, other = completion_hidden(actor.trunk, part), completion_hidden(reference.trunk, part)
    values = None if learner.head is None else learner.head(at_least_float32(hidden))
    compared = logprobs_and_kl(actor, reference, hidden, other, part.completion_ids, temperature, logits_mb)
    return Evaluated(*compared, values)


def make_experience(
    learner: Learner, rollout: Rollout, scores: Scores, greedy: Tensor | None, passes: Passes
) -> tuple[Experience, dict[str, float]]:
    """The experience of a rollout, and statistics of it under their metric names.

    `greedy` [P] are the scores of the prompts' greedy completions, where the baseline asks for them. Raises Diverged
    where a value of the critic is not finite.
    """
    sequences, algorithm = rollout.sequences, learner.algorithm
    mask = sequences.mask
    evaluated = evaluate(learner, sequences, passes)
    if evaluated.values is not None:
        require_finite(torch.where(mask, evaluated.values, 0.0), "a value of the critic", of_critic=True)
    behaviour = rollout.sampler_logprobs if evaluated.logprobs is None else evaluated.logprobs
    outcome = scores.outcome + algorithm.shaping(mask.sum(1), passes.max_tokens)
    rewards = place(outcome, mask, rollout.group_size, scores.steps, greedy)
    rewards = with_kl_reward(algorithm, rewards, learner.betas.reference, behaviour, evaluated.reference_logprobs)
    advantages, returns = advantages_and_returns(algorithm, rewards, evaluated.values)
    statistics: dict[str, Tensor | float] = {
        "policy/entropy": masked_mean(rollout.entropy, mask),
        "advantage/mean": masked_mean(advantages, mask),
        "advantage/std": masked_variance(advantages, mask).sqrt(),
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
    return experience, numbers(statistics)


def kl_statistics(name: str, logprobs: Tensor, other: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """k1, k2 and k3 of KL(p‖q) for samples of p, in nats per token and summed per sequence."""
    statistics = {}
    for estimator in Estimator:
        terms = torch.where(mask, estimator(logprobs, other), 0.0)
        statistics[f"kl/{name}_{estimator.value}_per_token"] = masked_mean(terms, mask)
        statistics[f"kl/{name}_{estimator.value}_per_sequence"] = terms.sum(1).mean()
    return statistics


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 − Var(R − V)/Var(R) over the mask; 0 where the returns do not vary."""
    variance, unexplained = masked_variance(returns, mask), masked_variance(returns - values, mask)
    return torch.where(variance > 0, 1 - unexplained / variance.clamp(min=1e-12), 0.0)
