"""The passes over prompt + completion that every method uses: logits, log-probs, values."""

from __future__ import annotations

import torch
from torch import Tensor

from bakeoff.batch import Sequences
from bakeoff.model.critic import Critic, ValueHead
from bakeoff.model.load import Policy


def completion_logits(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """Logits [S, T, V] in float32, over the temperature, that predict each completion token."""
    return _logits_and_hidden(policy, sequences, temperature, hidden=False)[0]


def logits_and_values(
    policy: Policy, head: ValueHead | None, sequences: Sequences, temperature: float
) -> tuple[Tensor, Tensor | None]:
    """One pass over the actor's trunk: logits [S, T, V] and, where it has a value head, values [S, T]."""
    logits, hidden = _logits_and_hidden(policy, sequences, temperature, hidden=head is not None)
    return logits, None if head is None or hidden is None else head(hidden)


def _logits_and_hidden(
    policy: Policy, sequences: Sequences, temperature: float, hidden: bool
) -> tuple[Tensor, Tensor | None]:
    keep = sequences.mask.shape[1] + 1
    with policy.autocast():
        out = policy.network(
            input_ids=sequences.ids,
            attention_mask=sequences.attention,
            position_ids=sequences.positions,
            logits_to_keep=keep,
            output_hidden_states=hidden,
            use_cache=False,
        )
    logits = out.logits[:, :-1].float() / temperature
    return logits, out.hidden_states[-1][:, -keep:-1].float() if hidden else None


def completion_values(policy: Policy, critic: Critic, sequences: Sequences) -> Tensor:
    """Values [S, T] of the state before each completion token, by a critic of its own."""
    keep = sequences.mask.shape[1] + 1
    with policy.autocast():
        out = critic.backbone(
            input_ids=sequences.ids,
            attention_mask=sequences.attention,
            position_ids=sequences.positions,
            use_cache=False,
        )
    values: Tensor = critic.head(out.last_hidden_state[:, -keep:-1].float())
    return values


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log π of each token: [S, T] from logits [S, T, V] and ids [S, T]."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of every position's distribution: [S, T] from logits [S, T, V]."""
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
