"""The one path: every method's advantages and losses are these functions with other options.

Pure torch on tensors [S, T]; no model is needed to call them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bakeoff.algorithm import Algorithm
from bakeoff.algorithm.critic import ValueLoss
from bakeoff.batch import Rewards, StepRewards, Tokens
from bakeoff.rows import columns_first


@dataclass
class Betas:
    """The coefficients of the two KL terms and of the entropy, which a run adapts and checkpoints."""

    reference: float = 0.0
    behaviour: float = 0.0
    entropy: float = 0.0

    @classmethod
    def of(cls, algorithm: Algorithm) -> Betas:
        return cls(algorithm.kl_to_reference.beta, algorithm.kl_to_behaviour.beta, algorithm.entropy.coefficient)


def place_scores(
    outcome: Tensor, mask: Tensor, group_size: int, process: StepRewards | None = None, greedy: Tensor | None = None
) -> Rewards:
    """Puts each sequence's outcome score [S] on the last token that the policy wrote, and step scores where steps end.

    `greedy` [P] are the scores of the prompts' greedy completions.
    """
    columns = torch.arange(mask.shape[1], device=mask.device)
    ends = torch.where(mask, columns, -1).amax(1)
    last = mask & (columns == ends[:, None])
    tokens = outcome[:, None] * last
    if process is None:
        process = StepRewards(torch.arange(len(mask), device=mask.device), ends, outcome, len(mask))
    else:
        tokens = tokens + process.on_tokens(process.score, mask)
    return Rewards(tokens=tokens, process=process, last=last, mask=mask, group_size=group_size, greedy=greedy)


def with_kl_reward(
    algorithm: Algorithm, rewards: Rewards, beta: float, behaviour: Tensor, reference: Tensor | None
) -> Rewards:
    """Adds the KL reward of every token, where the method puts its KL there. Log-probs are [S, T].

    A method that reads no scores has no other rewards.
    """
    if not algorithm.kl_to_reference.reads_scores:
        without = replace(rewards.process, score=torch.zeros_like(rewards.process.score))
        rewards = replace(rewards, tokens=torch.zeros_like(rewards.tokens), process=without)
    if reference is None:
        return rewards
    added = algorithm.kl_to_reference.reward(beta, behaviour, reference)
    return replace(rewards, tokens=rewards.tokens + torch.where(rewards.mask, added, 0.0))


def advantages_and_returns(
    algorithm: Algorithm, rewards: Rewards, values: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Scaled advantages [S, T] and, with a critic, its targets [S, T], which no scale touches.

    Time counts the tokens that the policy wrote: an advantage reads rows in which nothing stands between them.
    """
    centred = rewards.tokens - algorithm.baseline(rewards)
    order = columns_first(rewards.mask)
    back = order.argsort(1)
    values = None if values is None else values.gather(1, order)
    advantages, returns = algorithm.advantage(centred.gather(1, order), values, rewards.mask.gather(1, order))
    returns = None if returns is None else returns.gather(1, back)
    return algorithm.scale(advantages.gather(1, back), rewards), returns


@dataclass
class PolicyLoss:
    """loss: a scalar to minimise; ratio [S, T] and clipped [S, T] bool, detached, for statistics."""

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


def policy_loss(
    algorithm: Algorithm,
    tokens: Tokens,
    token_weights: Tensor,
    reference: Tensor | None = None,
    betas: Betas | None = None,
) -> PolicyLoss:
    """−Σ weight·(surrogate − KL penalties + entropy bonus) over the tokens of a (micro-)batch, all tensors [S, T].

    `token_weights` come from `algorithm.aggregate` on the whole minibatch; a micro-batch gets its rows of them, and
    the losses of the micro-batches add up to that of the minibatch.
    """
    betas = betas or Betas.of(algorithm)
    # Padding is zeroed first: whatever stands there, its ratio is one and its gradient zero.
    logprobs, behaviour = (torch.where(tokens.mask, each, 0.0) for each in (tokens.logprobs, tokens.behaviour))
    tokens = replace(tokens, logprobs=logprobs, behaviour=behaviour)
    ratio = algorithm.ratio(tokens)
    gain = algorithm.objective(ratio, tokens)
    if tokens.correction is not None:
        gain = tokens.correction * gain
    if reference is not None:
        reference = torch.where(tokens.mask, reference, 0.0)
        gain = gain - algorithm.kl_to_reference.penalty(betas.reference, logprobs, reference, behaviour)
    gain = gain - algorithm.kl_to_behaviour.penalty(betas.behaviour, logprobs, behaviour)
    if tokens.policy_entropy is not None:
        gain = gain + algorithm.entropy.bonus(betas.entropy, torch.where(tokens.mask, tokens.policy_entropy, 0.0))
    loss = -(token_weights.to(gain.dtype) * gain).sum()
    return PolicyLoss(loss, ratio.detach(), algorithm.objective.clipped(ratio.detach(), tokens) & tokens.mask)


@dataclass
class CriticLoss:
    """Scalars of a critic's loss, the first to minimise: metrics `critic/…`, which metrics.py defines.

    value_clip_fraction   none without a clip
    """

    value_loss: Tensor
    value_clip_fraction: Tensor | None


def value_loss(
    critic: ValueLoss, values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, tokens: Tensor
) -> CriticLoss:
    """The critic's loss on some rows of a minibatch: sums over them, divided by the minibatch's number of `tokens`."""
    loss, clipped = critic(values, old_values, returns)
    flat = None if clipped is None else (clipped & mask).sum() / tokens
    return CriticLoss(torch.where(mask, loss, 0.0).sum() / tokens, flat)
