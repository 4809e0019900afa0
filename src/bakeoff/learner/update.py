"""From experience to a step: epochs × minibatches × micro-batches, the same for every method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from bakeoff.algorithm.critic import OwnStep, Shared, ValueLoss
from bakeoff.algorithm.loss import policy_loss, value_loss
from bakeoff.algorithm.step import Step, Subproblem, require_finite
from bakeoff.attribution import attributed
from bakeoff.batch import Experience, masked_mean, micro_batches, numbers
from bakeoff.learner.experience import kl_statistics
from bakeoff.learner.fisher import fisher_product, sequences_within
from bakeoff.learner.state import Learner, Passes
from bakeoff.model.forward import completion_values
from bakeoff.model.logprobs import completion_logprobs, logprobs_and_values

Collected = dict[str, list[Tensor]]


def update(learner: Learner, experience: Experience, passes: Passes, generator: torch.Generator) -> dict[str, float]:
    """Trains actor and critic on one rollout; returns statistics under their metric names.

    Means are over the steps; `generator` shuffles groups, which a minibatch never cuts.
    """
    collected: Collected = defaultdict(list)
    critic = learner.algorithm.critic
    trained = [module for role in ("actor", "critic") for module in learner.modules()[role]]
    for module in trained:
        module.train()  # there is no dropout: it only lets layers recompute their activations, where that is asked for
    if learner.counters.updates >= critic.warmup_updates:
        for minibatch in minibatches(experience, learner.algorithm.step, generator):
            with passes.phases("actor_update"), attributed("actor", "activations"):
                actor_gradient(learner, minibatch, passes, collected)
                with attributed(kind="optimizer"):
                    statistics = learner.algorithm.step(actor_subproblem(learner, minibatch, passes))
                for name, value in statistics.items():
                    collected[f"policy/{name}"].append(torch.as_tensor(value))
    if isinstance(critic, OwnStep) and learner.critic_optimizer is not None:
        for minibatch in minibatches(experience, critic.step, generator):
            with passes.phases("critic_update"), attributed("critic", "activations"):
                critic_gradient(learner, critic, minibatch, passes, collected)
                with attributed(kind="optimizer"):
                    statistics = critic.step(Subproblem(learner.critic_optimizer))
                for name, value in statistics.items():
                    collected[f"critic/{name}"].append(torch.as_tensor(value))
    for module in trained:
        module.eval()
    return means(collected)


def means(collected: Collected) -> dict[str, float]:
    """The mean of each statistic over the steps; of some the largest or the first."""
    statistics = {name: torch.stack(values).mean() for name, values in collected.items()}
    if "policy/ratio_max" in collected:
        statistics["policy/ratio_max"] = torch.stack(collected["policy/ratio_max"]).max()
        statistics["policy/first_ratio_error"] = collected["policy/first_ratio_error"][0]
        statistics["policy/first_clip_fraction"] = collected["policy/clip_fraction"][0]
    return numbers(statistics)


def minibatches(experience: Experience, step: Step, generator: torch.Generator) -> Iterator[Experience]:
    """The groups in a new order for each epoch, in as many parts as the step has minibatches."""
    groups = len(experience) // experience.sequences.group_size
    for _ in range(step.epochs):
        order = torch.randperm(groups, generator=generator, device=generator.device)
        for part in order.tensor_split(step.minibatches):
            yield experience.groups(part)


def actor_gradient(learner: Learner, minibatch: Experience, passes: Passes, collected: Collected) -> None:
    """Leaves the gradient of the minibatch's loss on the actor, independent of the micro-batch size."""
    algorithm, mask = learner.algorithm, minibatch.sequences.mask
    weights = algorithm.aggregate(mask, passes.max_tokens)
    losses, value_losses, ratios, clipped = [], [], [], []
    for rows in micro_batches(len(minibatch), passes.micro_batch):
        part = minibatch[rows]
        logprobs, values = logprobs_and_values(
            learner.actor, learner.head, part.sequences, passes.temperature, passes.logits_mb
        )
        result = policy_loss(
            algorithm,
            logprobs,
            part.behaviour_logprobs,
            part.advantages,
            part.sequences.mask,
            weights[rows],
            part.reference_logprobs,
            learner.betas,
        )
        loss = result.loss
        if isinstance(algorithm.critic, Shared) and values is not None:
            critic_loss = _value_loss(algorithm.critic, part, values, mask.sum())
            loss = loss + algorithm.critic.coefficient * critic_loss
            value_losses.append(critic_loss.detach())
        loss.backward()
        losses.append(result.loss.detach())
        ratios.append(result.ratio)
        clipped.append(result.clipped)
    ratio = torch.cat(ratios)
    collected["policy/loss"].append(torch.stack(losses).sum())
    collected["policy/ratio_mean"].append(masked_mean(ratio, mask))
    collected["policy/ratio_max"].append(torch.where(mask, ratio, 0).max())
    share = masked_mean(ratio, mask).square() / masked_mean(ratio.square(), mask)
    collected["policy/effective_sample_size"].append(share)
    collected["policy/clip_fraction"].append(masked_mean(torch.cat(clipped).float(), mask))
    if not collected["policy/first_ratio_error"]:
        collected["policy/first_ratio_error"].append(torch.where(mask, ratio - 1, 0).abs().max())
    if value_losses:
        collected["critic/value_loss"].append(torch.stack(value_losses).sum())


def critic_gradient(
    learner: Learner, spec: ValueLoss, minibatch: Experience, passes: Passes, collected: Collected
) -> None:
    """Leaves the gradient of the minibatch's value loss on a critic of its own."""
    assert learner.critic is not None
    mask, losses = minibatch.sequences.mask, []
    for rows in micro_batches(len(minibatch), passes.micro_batch):
        part = minibatch[rows]
        loss = _value_loss(spec, part, completion_values(learner.critic, part.sequences), mask.sum())
        loss.backward()
        losses.append(loss.detach())
    collected["critic/value_loss"].append(torch.stack(losses).sum())


def _value_loss(spec: ValueLoss, part: Experience, values: Tensor, tokens: Tensor) -> Tensor:
    assert part.values is not None
    assert part.returns is not None
    return value_loss(spec, values, part.values, part.returns, part.sequences.mask, tokens)


def actor_subproblem(learner: Learner, minibatch: Experience, passes: Passes) -> Subproblem:
    """What a step may ask of this minibatch: loss and KL where the parameters are, and Fisher products."""

    @torch.no_grad()
    def evaluate() -> tuple[float, float]:
        algorithm, mask = learner.algorithm, minibatch.sequences.mask
        weights = algorithm.aggregate(mask, passes.max_tokens)
        logprobs = actor_logprobs(learner, minibatch, passes)
        result = policy_loss(
            algorithm,
            logprobs,
            minibatch.behaviour_logprobs,
            minibatch.advantages,
            mask,
            weights,
            minibatch.reference_logprobs,
            learner.betas,
        )
        kl = kl_statistics("behaviour", minibatch.behaviour_logprobs, logprobs, mask)["kl/behaviour_k3_per_token"]
        return float(result.loss), float(kl)

    def product(vector: list[Tensor], tokens: int) -> list[Tensor]:
        sequences = minibatch.sequences[: sequences_within(minibatch.sequences, tokens)]
        with passes.phases("fisher_product"):
            return fisher_product(learner.actor, sequences, vector, passes.temperature, passes.micro_batch)

    return Subproblem(learner.actor_optimizer, evaluate, product)


@torch.no_grad()
def actor_logprobs(learner: Learner, experience: Experience, passes: Passes) -> Tensor:
    """log π_θ [S, T] of the experience's tokens, without gradient."""
    sequences = experience.sequences
    parts = [
        completion_logprobs(learner.actor, sequences[rows], passes.temperature, passes.logits_mb)
        for rows in micro_batches(len(sequences), passes.micro_batch)
    ]
    return torch.cat(parts)


def measure_step(learner: Learner, experience: Experience, count: int, passes: Passes) -> dict[str, float]:
    """KL(π_old‖π_θ) after the update, from π_old's first `count` samples (0: all): what adaptive β reads.

    Raises Diverged where log π_θ is not finite: a finite gradient can still be followed too far.
    """
    first = experience[slice(0, count or None)]
    logprobs, mask = actor_logprobs(learner, first, passes), first.sequences.mask
    require_finite(torch.where(mask, logprobs, 0.0), "a log-probability of the policy after the step")
    return numbers(kl_statistics("behaviour", first.behaviour_logprobs, logprobs, mask))
