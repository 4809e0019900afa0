"""Log-probs of completions from hidden states, a chunk of tokens at a time.

The logits of all tokens, [N, V] in float32, are the largest tensor of a step where the vocabulary is large, and only
one number of each row is needed. So logits are computed a chunk of rows at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bakeoff.algorithm import kl
from bakeoff.attribution import attributed
from bakeoff.batch import Sequences
from bakeoff.model.forward import ForwardSettings, Hidden, completion_hidden, values_of
from bakeoff.model.policy import Policy
from bakeoff.model.value import ValueHead


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log π of each token: [...] from logits [..., V] and ids [...]."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


def token_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats over the last axis, [...] from logits [..., V]."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def completion_logprobs(policy: Policy, sequences: Sequences, forward: ForwardSettings) -> Tensor:
    """log π [S, T] of the completion's tokens, zero on padding."""
    return policy_pass(policy, None, sequences, forward).logprobs


class Terms(NamedTuple):
    """What a pass says of a completion's tokens, [S, T] each: log π, entropy of π in nats, value; zero on padding."""

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor | None = None


def policy_pass(
    policy: Policy, head: ValueHead | None, sequences: Sequences, forward: ForwardSettings, with_entropy: bool = False
) -> Terms:
    """One pass: log π, values where there is a head, and the entropy where it is asked for."""
    hidden = completion_hidden(policy.trunk, sequences)
    values = None if head is None else values_of(head, hidden)
    return completion_terms(policy, hidden, forward, with_entropy)._replace(values=values)


def completion_terms(policy: Policy, hidden: Hidden, forward: ForwardSettings, with_entropy: bool) -> Terms:
    """log π of the tokens by the policy's head and, where it is asked for, the entropy of π."""
    logprobs, *entropy = map(hidden.spread, head_terms(policy, hidden, forward, with_entropy))
    return Terms(logprobs, entropy[0] if with_entropy else None)


def head_terms(policy: Policy, hidden: Hidden, forward: ForwardSettings, with_entropy: bool) -> tuple[Tensor, ...]:
    """log π [N] of the tokens and, where it is asked for, the entropy of π [N]."""
    size, states, ids = chunk_size(policy, forward), hidden.states, hidden.ids
    with policy.trunk.computing(), attributed(kind="logits"):
        if len(ids) <= size:
            return token_terms(policy.logits(states, forward.temperature), ids, with_entropy)
        head, settings = policy.head, (policy, forward.temperature, size, with_entropy)
        chunked: tuple[Tensor, ...] = _ChunkedTerms.apply(states, head.weight, head.bias, ids, *settings)
        return chunked


def token_terms(logits: Tensor, ids: Tensor, with_entropy: bool) -> tuple[Tensor, ...]:
    """log π of each token and, where it is asked for, the entropy of π there."""
    logprobs = token_logprobs(logits, ids)
    return (logprobs, token_entropy(logits)) if with_entropy else (logprobs,)


@torch.no_grad()
def logprobs_and_kl(
    policy: Policy, other: Policy, hidden: Hidden, other_hidden: Hidden, forward: ForwardSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """log p, log q and the exact KL(p‖q) over the vocabulary, [S, T] each, from last hidden states of both models."""
    found = []
    for ids, logits, others in chunks_of_logits(policy, other, hidden, other_hidden, forward):
        both = kl.exact(logits, others[:, : logits.shape[1]])  # a larger teacher may pad its embedding further
        found.append((token_logprobs(logits, ids), token_logprobs(others, ids), both))
    mine, its, divergence = (hidden.spread(torch.cat(parts)) for parts in zip(*found, strict=True))
    return mine, its, divergence


@torch.no_grad()
def exact_kl(policy: Policy, other: Policy, hidden: Hidden, other_hidden: Hidden, forward: ForwardSettings) -> Tensor:
    """The exact KL(p‖q) over the vocabulary in nats, [N], from the last hidden states of both models."""
    chunks = chunks_of_logits(policy, other, hidden, other_hidden, forward)
    return torch.cat([kl.exact(logits, others) for _, logits, others in chunks])


def chunks_of_logits(
    policy: Policy, other: Policy, hidden: Hidden, other_hidden: Hidden, forward: ForwardSettings
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields ids [n] and the logits [n, V] of both models, a chunk of tokens at a time."""
    chunks = (x.split(chunk_size(policy, forward)) for x in (hidden.ids, hidden.states, other_hidden.states))
    with attributed(policy.name, "logits"):
        for ids, states, other_states in zip(*chunks, strict=True):
            yield ids, policy.logits(states, forward.temperature), other.logits(other_states, forward.temperature)


def chunk_size(policy: Policy, forward: ForwardSettings) -> int:
    """Number of tokens whose logits are held at once."""
    return max(1, int(forward.logits_mb * 1e6 / (4 * policy.embedding[0]))) if forward.logits_mb else 2**62


class _ChunkedTerms(torch.autograd.Function):
    """`token_terms` [N] from states [N, H], a chunk of tokens at a time.

    Left to autograd, every chunk would make a gradient of the head of its own, and add it to the sum: where the
    vocabulary is large, that takes longer than the chunk's products. Here all chunks add to one buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, *settings: Any
    ) -> tuple[Tensor, ...]:
        policy, temperature, size, with_entropy = ctx.settings = settings
        ctx.save_for_backward(states, weight, ids)
        chunks = zip(states.split(size), ids.split(size), strict=True)
        found = [token_terms(policy.logits(x, temperature), own, with_entropy) for x, own in chunks]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        states, weight, ids = ctx.saved_tensors
        policy, temperature, size, with_entropy = ctx.settings
        with attributed(policy.name, "gradients"):
            into_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
            into_bias = torch.zeros_like(policy.head.bias) if ctx.needs_input_grad[2] else None
        parts = []
        with attributed(policy.name, "logits"):
            for part, own, *upstream in zip(*(x.split(size) for x in (states, ids, *gradients)), strict=True):
                inputs = part.to(weight.dtype)
                products = policy.products(inputs).requires_grad_()
                with torch.enable_grad():
                    terms = token_terms(policy.scaled(products, temperature), own, with_entropy)
                (of_products,) = torch.autograd.grad(terms, products, upstream)
                parts.append((of_products @ weight).to(states.dtype))
                if into_weight is not None:
                    into_weight.addmm_(of_products.T, inputs)
                if into_bias is not None:
                    into_bias += of_products.sum(0)
        return torch.cat(parts), into_weight, into_bias, None, None, None, None, None
