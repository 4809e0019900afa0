"""From experience to a step: epochs × minibatches × micro-batches, the same for every method."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from bakeoff.algorithm.critic import Separate, Shared
from bakeoff.algorithm.loss import policy_loss, value_loss
from bakeoff.algorithm.step import clipped_step
from bakeoff.batch import Experience, masked_mean, micro_batches
from bakeoff.learner.experience import kl_statistics
from bakeoff.learner.state import Learner, value_spec
from bakeoff.measure.phase import Phases
from bakeoff.model.forward import completion_logits, completion_values, logits_and_values, token_logprobs


def update(
    learner: Learner,
    experience: Experience,
    phases: Phases,
    generator: torch.Generator,
    temperature: float,
    max_tokens: int,
    micro_batch: int,
) -> dict[str, float]:
    """Trains actor and critic on one rollout; returns statistics under their metric names.

    Means are over the minibatches; `generator` shuffles groups, which a minibatch never cuts. `max_tokens` is the
    generation budget.
    """
    step, spec = learner.algorithm.step, learner.algorithm.critic
    warming_up = isinstance(spec, Separate) and learner.counters.updates < spec.warmup_updates
    collected: dict[str, list[Tensor]] = defaultdict(list)
    learner.actor.network.train()
    for _ in range(step.epochs):
        groups = len(experience) // experience.sequences.group_size
        order = torch.randperm(groups, generator=generator, device=generator.device)
        for part in order.tensor_split(step.minibatches):
            minibatch = experience.groups(part)
            if not warming_up:
                with phases("actor_update"):
                    actor_gradient(learner, minibatch, temperature, max_tokens, micro_batch, collected)
                    collected["policy/gradient_norm"].append(step(learner.actor_optimizer))
            if isinstance(spec, Separate) and learner.critic_optimizer is not None:
                with phases("critic_update"):
                    critic_gradient(learner, minibatch, micro_batch, collected)
                    norm = clipped_step(learner.critic_optimizer, spec.max_gradient_norm)
                    collected["critic/gradient_norm"].append(norm)
    learner.actor.network.eval()
    statistics = {name: float(torch.stack(values).mean()) for name, values in collected.items()}
    if "policy/ratio_max" in collected:
        statistics["policy/ratio_max"] = float(torch.stack(collected["policy/ratio_max"]).max())
        statistics["policy/first_ratio_error"] = float(collected["policy/first_ratio_error"][0])
        statistics["policy/first_clip_fraction"] = float(collected["policy/clip_fraction"][0])
    return statistics


def actor_gradient(
    learner: Learner,
    minibatch: Experience,
    temperature: float,
    max_tokens: int,
    micro_batch: int,
    collected: dict[str, list[Tensor]],
) -> None:
    """Leaves the gradient of the minibatch's loss on the actor, independent of the micro-batch size."""
    algorithm, mask = learner.algorithm, minibatch.sequences.mask
    weights = algorithm.aggregate(mask, max_tokens)
    losses, value_losses, ratios, clipped = [], [], [], []
    for rows in micro_batches(len(minibatch), micro_batch):
        part = minibatch[rows]
        logits, values = logits_and_values(learner.actor, learner.head, part.sequences, temperature)
        logprobs = token_logprobs(logits, part.sequences.completion_ids)
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
            critic_loss = _value_loss(learner, part, values, mask.sum())
            loss = loss + algorithm.critic.coefficient * critic_loss
            value_losses.append(critic_loss.detach())
        loss.backward()
        losses.append(result.loss.detach())
        ratios.append(result.ratio)
        clipped.append(result.clipped)
    ratio = torch.cat(ratios)
    collected["policy/loss"].append(torch.stack(losses).sum())
    collected["policy/ratio_mean"].append(masked_mean(ratio, mask))
    collected["policy/ratio_max"].append(ratio[mask].max())
    collected["policy/clip_fraction"].append(masked_mean(torch.cat(clipped).float(), mask))
    if not collected["policy/first_ratio_error"]:
        collected["policy/first_ratio_error"].append((ratio[mask] - 1).abs().max())
    if value_losses:
        collected["critic/value_loss"].append(torch.stack(value_losses).sum())


def critic_gradient(
    learner: Learner, minibatch: Experience, micro_batch: int, collected: dict[str, list[Tensor]]
) -> None:
    """Leaves the gradient of the minibatch's value loss on a critic of its own."""
    assert learner.critic is not None
    mask, losses = minibatch.sequences.mask, []
    for rows in micro_batches(len(minibatch), micro_batch):
        part = minibatch[rows]
        loss = _value_loss(learner, part, completion_values(learner.actor, learner.critic, part.sequences), mask.sum())
        loss.backward()
        losses.append(loss.detach())
    collected["critic/value_loss"].append(torch.stack(losses).sum())


def _value_loss(learner: Learner, part: Experience, values: Tensor, tokens: Tensor) -> Tensor:
    spec = value_spec(learner)
    assert spec is not None
    assert part.values is not None
    assert part.returns is not None
    return value_loss(spec, values, part.values, part.returns, part.sequences.mask, tokens)


@torch.no_grad()
def measure_step(
    learner: Learner, experience: Experience, count: int, temperature: float, micro_batch: int
) -> dict[str, float]:
    """KL(π_old‖π_θ) after the update, from π_old's first `count` samples (0: all): what adaptive β reads."""
    first = slice(0, count or None)
    sequences, behaviour = experience.sequences[first], experience.behaviour_logprobs[first]
    parts = [
        token_logprobs(completion_logits(learner.actor, part, temperature), part.completion_ids)
        for rows in micro_batches(len(sequences), micro_batch)
        for part in [sequences[rows]]
    ]
    statistics = kl_statistics("behaviour", behaviour, torch.cat(parts), sequences.mask)
    return {name: float(value) for name, value in statistics.items()}
