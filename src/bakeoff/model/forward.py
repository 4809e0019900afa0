"""The passes over prompt + completion that every method uses: logits, log-probs, values."""

from __future__ import annotations

from typing import Any

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
    keep = sequences.mask.shape[1]
    with policy.autocast():
        out = policy.network(**_inputs(sequences), logits_to_keep=keep, output_hidden_states=hidden)
    logits = out.logits.float() / temperature
    return logits, out.hidden_states[-1][:, -keep:].float() if hidden else None


def completion_values(policy: Policy, critic: Critic, sequences: Sequences) -> Tensor:
    """Values [S, T] of the state before each completion token, by a critic of its own."""
    with policy.autocast():
        out = critic.backbone(**_inputs(sequences))
    values: Tensor = critic.head(out.last_hidden_state[:, -sequences.mask.shape[1] :].float())
    return values


def _inputs(sequences: Sequences) -> dict[str, Any]:
    """All tokens but the last, which predicts nothing: position t of the result belongs to token t + 1."""
    return {
        "input_ids": sequences.ids[:, :-1],
        "attention_mask": sequences.attention[:, :-1],
        "position_ids": sequences.positions[:, :-1],
        "use_cache": False,
    }


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """log π of each token: [S, T] from logits [S, T, V] and ids [S, T]."""
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
