"""Log-probs of completions from hidden states, a chunk of tokens at a time.

The logits of all tokens, [S, T, V] in float32, are the largest tensor of a step where the vocabulary is large, and only
one number of each row is needed. So logits are computed a chunk of rows at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bakeoff.algorithm import kl
from bakeoff.attribution import attributed
from bakeoff.batch import Sequences
from bakeoff.model.forward import ForwardSettings, completion_hidden
from bakeoff.model.policy import Policy, at_least_float32
from bakeoff.model.value import ValueHead


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log π of each token: [...] from logits [..., V] and ids [...]."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def completion_logprobs(policy: Policy, sequences: Sequences, forward: ForwardSettings) -> Tensor:
    """log π [S, T] of the completion's tokens."""
    return logprobs_and_values(policy, None, sequences, forward)[0]


def logprobs_and_values(
    policy: Policy, head: ValueHead | None, sequences: Sequences, forward: ForwardSettings
) -> tuple[Tensor, Tensor | None]:
    """One pass over the actor's trunk: log π [S, T] and, where it has a value head, values [S, T]."""
    hidden = completion_hidden(policy.trunk, sequences)
    values = None if head is None else head(at_least_float32(hidden))

    def logprobs(hidden: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        return (token_logprobs(policy.logits(hidden, forward.temperature), ids),)

    return chunked(policy, logprobs, (hidden, sequences.completion_ids), forward.logits_mb)[0], values


def logprobs_and_kl(
    policy: Policy, other: Policy, hidden: Tensor, other_hidden: Tensor, ids: Tensor, forward: ForwardSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """log p, log q and the exact KL(p‖q) over the vocabulary, [S, T] each, from last hidden states of both models."""

    def compared(hidden: Tensor, other_hidden: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        logits = policy.logits(hidden, forward.temperature)
        others = other.logits(other_hidden, forward.temperature)
        return token_logprobs(logits, ids), token_logprobs(others, ids), kl.exact(logits, others)

    mine, its, divergence = chunked(policy, compared, (hidden, other_hidden, ids), forward.logits_mb)
    return mine, its, divergence


def chunked(
    policy: Policy, function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...], logits_mb: float
) -> list[Tensor]:
    """Applies a function of single tokens to inputs [S, T, ...] so that its logits exist a chunk at a time.

    A chunk has at most `logits_mb` (10⁶ bytes; 0: no bound) of float32 logits; where there are several, gradients
    make each chunk's logits a second time. The values are those of one call, to the rounding of matrix products.
    """
    shape = inputs[0].shape[:2]
    flat = [x.flatten(0, 1) for x in inputs]
    tokens = max(1, int(logits_mb * 1e6 / (4 * policy.embedding[0]))) if logits_mb else len(flat[0])
    with policy.trunk.computing(), attributed(kind="logits"):
        if len(flat[0]) <= tokens:
            return [out.view(shape) for out in function(*flat)]
        parts = []
        for part in zip(*(x.split(tokens) for x in flat), strict=True):
            if torch.is_grad_enabled():
                parts.append(checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(function(*part))
    return [torch.cat(outputs).view(shape) for outputs in zip(*parts, strict=True)]
