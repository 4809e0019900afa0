"""From experience to steps: epochs × minibatches × micro-batches, the same for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.critic import OwnStep, Shared, ValueLoss
from bakeoff.algorithm.divergence import require_finite
from bakeoff.algorithm.kl import KLEstimates, estimate_kl
from bakeoff.algorithm.loss import CriticLoss, PolicyLoss, policy_loss, value_loss
from bakeoff.algorithm.optimizer import Optimizer, StepStatistics, Subproblem
from bakeoff.attribution import attributed
from bakeoff.batch import Experience, Tokens, masked_mean
from bakeoff.learner.fisher import fisher_product, sequences_within
from bakeoff.learner.holdings import modules
from bakeoff.learner.learner import Learner
from bakeoff.learner.sharding import in_turn, passed
from bakeoff.model.forward import Hidden, completion_hidden, completion_values
from bakeoff.model.logprobs import completion_logprobs, completion_terms, exact_kl, policy_pass
from bakeoff.model.micro_batches import own_micro_batches
from bakeoff.model.policy import Policy, recomputes
from bakeoff.model.weights import with_frozen_head
from bakeoff.rows import Scalar, group_rows, map_tensors, select

Opens = Callable[[], AbstractContextManager[None]]  # opens a phase


@dataclass
class ActorLoss:
    """Scalars of a minibatch's loss, most of them metrics `policy/…`, which metrics.py defines.

    ratio_error           largest |ratio − 1|: 0 in the first minibatch of a rollout
    value_loss            of a value head on the actor's trunk; none without one
    value_clip_fraction   of that loss; none without a clip
    """

    loss: Scalar
    ratio_mean: Scalar
    ratio_max: Scalar
    ratio_error: Scalar
    effective_sample_size: Scalar
    clip_fraction: Scalar
    value_loss: Scalar | None
    value_clip_fraction: Scalar | None


@dataclass
class Step:
    """One step of the actor, or of a critic of its own."""

    minibatch: ActorLoss | CriticLoss
    step: StepStatistics


def update_actor(
    learner: Learner, experience: Experience, draws: torch.Generator, fisher_phase: Opens = nullcontext
) -> list[Step]:
    """Trains the actor on one rollout; returns its steps.

    `draws` shuffles groups, which a minibatch never cuts. `fisher_phase` opens the phase in which products with the
    Fisher information are measured.
    """
    optimizer, steps = learner.algorithm.optimizer, []
    learner = with_entropy_coefficient(learner, experience)
    with training(learner, "actor"):
        for minibatch in minibatches(experience, optimizer, draws):
            with attributed("actor", "activations"):
                loss = actor_gradient(learner, minibatch)
                with attributed(kind="optimizer"):
                    step = optimizer(actor_subproblem(learner, minibatch, fisher_phase))
            steps.append(Step(loss, step))
    return steps


def with_entropy_coefficient(learner: Learner, experience: Experience) -> Learner:
    """The learner with the coefficient of the entropy that its option applies at this π_old; its state stays."""
    entropy, betas = learner.algorithm.entropy, learner.betas
    if not entropy.adapts:
        return learner
    assert experience.entropy is not None
    nats = float(masked_mean(experience.entropy, experience.sequences.mask))
    return replace(learner, betas=replace(betas, entropy=entropy.applied(betas.entropy, nats)))


def update_critic(learner: Learner, experience: Experience, draws: torch.Generator) -> list[Step]:
    """Trains a critic of its own on one rollout; returns its steps, none where there is no such critic."""
    critic, steps = learner.algorithm.critic, []
    if not isinstance(critic, OwnStep) or learner.critic_optimizer is None:
        return []
    with training(learner, "critic"):
        for minibatch in minibatches(experience, critic.optimizer, draws):
            with attributed("critic", "activations"):
                loss = critic_gradient(learner, critic, minibatch)
                with attributed(kind="optimizer"):
                    step = critic.optimizer(Subproblem(learner.critic_optimizer))
            steps.append(Step(loss, step))
    return steps


@contextmanager
def training(learner: Learner, role: str) -> Iterator[None]:
    """Training mode for the role's networks that recompute activations: no other needs it, and it may add noise."""
    recomputing = [network for network in modules(learner)[role] if recomputes(network)]
    for network in recomputing:
        network.train()
    try:
        yield
    finally:
        for network in recomputing:
            network.eval()


def minibatches(experience: Experience, optimizer: Optimizer, draws: torch.Generator) -> Iterator[Experience]:
    """The groups in a new order for each epoch, in as many parts as the option has minibatches."""
    size = experience.sequences.group_size
    for _ in range(optimizer.epochs):
        order = torch.randperm(len(experience) // size, generator=draws, device=draws.device)
        for groups in order.tensor_split(optimizer.minibatches):
            yield select(experience, group_rows(groups, size))


def actor_gradient(learner: Learner, minibatch: Experience) -> ActorLoss:
    """Leaves the gradient of the minibatch's loss on the actor, whatever the size of a micro-batch."""
    critic, mask, weights = learner.algorithm.critic, minibatch.sequences.mask, token_weights(learner, minibatch)
    results, value_losses = [], []
    needs_entropy = learner.algorithm.entropy.needs_entropy
    for rows in in_turn(learner.shards, "actor", own_micro_batches(minibatch.sequences, learner.forward)):
        part = select(minibatch, rows)
        make = partial(policy_pass, learner.actor, learner.head, part.sequences, learner.forward, needs_entropy)
        own = passed(learner.shards, "actor", make)
        result = minibatch_loss(learner, part, own.logprobs, weights[rows], own.entropy)
        loss = result.loss
        if isinstance(critic, Shared) and own.values is not None:
            critic_loss = minibatch_value_loss(critic, part, own.values, mask.sum())
            loss = loss + critic.coefficient * critic_loss.value_loss
            value_losses.append(map_tensors(Tensor.detach, critic_loss))
        loss.backward()
        results.append(replace(result, loss=result.loss.detach()[None]))
    if not learner.shards:
        sum_gradients(learner.actor_optimizer)
    every = processes.joined(results, mask.device)
    ratio, clipped = every.ratio, every.clipped
    of_values = added(value_losses, mask.device) if value_losses else None
    return ActorLoss(
        loss=every.loss.sum(),
        ratio_mean=masked_mean(ratio, mask),
        ratio_max=torch.where(mask, ratio, 0).max(),
        ratio_error=torch.where(mask, ratio - 1, 0).abs().max(),
        effective_sample_size=effective_share(ratio, mask),
        clip_fraction=masked_mean(clipped.float(), mask),
        value_loss=of_values.value_loss if of_values else None,
        value_clip_fraction=of_values.value_clip_fraction if of_values else None,
    )


def effective_share(weights: Tensor, mask: Tensor) -> Tensor:
    """Effective sample size of non-negative weights [S, T] per sample, in [0, 1]: mean(w)² / mean(w²) (Kish 1965).

    It is 0 where every weight is: a policy may leave its samples so far that all ratios underflow.
    """
    tiny = torch.finfo(weights.dtype).tiny
    scaled = weights / torch.where(mask, weights, 0).max().clamp(min=tiny)  # whose squares do not underflow
    return masked_mean(scaled, mask).square() / masked_mean(scaled.square(), mask).clamp(min=tiny)


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Adds up the gradients of all processes: weights are those of the whole minibatch, so that nothing is averaged."""
    processes.add_gradients(p for group in optimizer.param_groups for p in group["params"])


def token_weights(learner: Learner, minibatch: Experience) -> Tensor:
    """Weights [S, T] of a minibatch's tokens in the loss."""
    sequences = minibatch.sequences
    return learner.algorithm.aggregate(sequences.mask, minibatch.max_tokens, sequences.group_size)


def minibatch_loss(
    learner: Learner, part: Experience, logprobs: Tensor, weights: Tensor, entropy: Tensor | None
) -> PolicyLoss:
    """The actor's loss on a (micro-)batch, from log π_θ of its tokens and, for a bonus, the entropy of π_θ [S, T]."""
    tokens = Tokens(
        logprobs=logprobs,
        behaviour=part.behaviour_logprobs,
        advantages=part.advantages,
        mask=part.sequences.mask,
        entropy=part.entropy,
        chosen=part.chosen,
        correction=part.correction,
        policy_entropy=entropy,
    )
    return policy_loss(learner.algorithm, tokens, weights, part.reference_logprobs, learner.betas)


def critic_gradient(learner: Learner, critic: ValueLoss, minibatch: Experience) -> CriticLoss:
    """Leaves the gradient of the minibatch's value loss on a critic of its own; returns that loss."""
    assert learner.critic is not None
    mask, losses = minibatch.sequences.mask, []
    for rows in in_turn(learner.shards, "critic", own_micro_batches(minibatch.sequences, learner.forward)):
        part = select(minibatch, rows)
        values = passed(learner.shards, "critic", partial(completion_values, learner.critic, part.sequences))
        loss = minibatch_value_loss(critic, part, values, mask.sum())
        loss.value_loss.backward()
        losses.append(map_tensors(Tensor.detach, loss))
    if not learner.shards and learner.critic_optimizer is not None:
        sum_gradients(learner.critic_optimizer)
    return added(losses, mask.device)


def added(parts: list[CriticLoss], device: torch.device) -> CriticLoss:
    """The loss of a minibatch from those of the micro-batches of all processes."""
    rows = [map_tensors(lambda scalar: scalar[None], part) for part in parts]
    total: CriticLoss = map_tensors(Tensor.sum, processes.joined(rows, device))
    return total


def minibatch_value_loss(critic: ValueLoss, part: Experience, values: Tensor, tokens: Tensor) -> CriticLoss:
    """The critic's loss on a (micro-)batch, divided by the minibatch's number of tokens."""
    assert part.values is not None
    assert part.returns is not None
    return value_loss(critic, values, part.values, part.returns, part.sequences.mask, tokens)


def actor_subproblem(learner: Learner, minibatch: Experience, fisher_phase: Opens) -> Subproblem:
    """The minibatch as a step may query it: loss and KL at the current parameters, and Fisher products.

    π_old is the policy at the first evaluation, whose last hidden states and head are kept for the exact KL.
    """
    actor, forward, mask = learner.actor, learner.forward, minibatch.sequences.mask
    start: list[tuple[Policy, Hidden]] = []

    @torch.no_grad()
    def evaluate() -> tuple[float, float]:
        weights, losses, kls, first = token_weights(learner, minibatch), [], [], not start
        for number, rows in enumerate(own_micro_batches(minibatch.sequences, forward)):
            part = select(minibatch, rows)
            hidden = completion_hidden(actor.trunk, part.sequences)
            if first:
                start.append((start[0][0] if start else with_frozen_head(actor), hidden))
            own = completion_terms(actor, hidden, forward, learner.algorithm.entropy.needs_entropy)
            losses.append(minibatch_loss(learner, part, own.logprobs, weights[rows], own.entropy).loss)
            old, old_hidden = start[number]
            kls.append(own.logprobs.new_zeros(()) if first else exact_kl(old, actor, old_hidden, hidden, forward).sum())
        loss, kl = processes.add([torch.stack(losses).sum(), torch.stack(kls).sum() / mask.sum()])
        return float(loss), float(kl)

    def product(vector: list[Tensor], tokens: int) -> list[Tensor]:
        sequences = minibatch.sequences
        within = select(sequences, slice(0, sequences_within(sequences, tokens)))
        with fisher_phase():
            return fisher_product(actor, within, vector, forward)

    return Subproblem(learner.actor_optimizer, evaluate, product)


@torch.no_grad()
def policy_logprobs(learner: Learner, policy: Policy, experience: Experience) -> Tensor:
    """log π [S, T] of the experience's tokens by a policy of the learner, without gradient."""
    sequences, forward = experience.sequences, learner.forward
    own = own_micro_batches(sequences, forward)
    parts = [completion_logprobs(policy, select(sequences, rows), forward) for rows in own]
    return processes.joined(parts, sequences.mask.device)


def measure_step(learner: Learner, experience: Experience, count: int = 0) -> KLEstimates:
    """KL(π_old‖π_θ) after the update, from π_old's first `count` samples (0: all).

    Raises Diverged where log π_θ is not finite: a finite gradient can still be followed too far.
    """
    first = select(experience, slice(0, count or None))
    logprobs, mask = policy_logprobs(learner, learner.actor, first), first.sequences.mask
    require_finite(torch.where(mask, logprobs, 0.0), "a log-probability of the policy after the step")
    return estimate_kl(first.behaviour_logprobs, logprobs, mask)


def measure_start(learner: Learner, experience: Experience) -> KLEstimates | None:
    """KL(π_old‖π_start) from π_old's samples, where only measuring asks for it; none elsewhere."""
    if learner.start is None:
        return None
    logprobs = policy_logprobs(learner, learner.start, experience)
    return estimate_kl(experience.behaviour_logprobs, logprobs, experience.sequences.mask)
