"""Passes in the shapes that tests compare."""

from __future__ import annotations

import torch
from torch import Tensor

from bakeoff.batch import Sequences
from bakeoff.model.forward import completion_hidden
from bakeoff.model.logprobs import token_logprobs
from bakeoff.model.policy import Policy


def completion_logits(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """Logits [S, T, V] that predict each completion token, zero on padding."""
    hidden = completion_hidden(policy.trunk, sequences)
    logits = policy.logits(hidden.states, temperature)
    every = logits.new_zeros(sequences.mask.numel(), logits.shape[-1])
    return every.index_put((hidden.places,), logits).view(*sequences.mask.shape, -1)


def plain_logprobs(policy: Policy, sequences: Sequences, temperature: float = 1.0) -> Tensor:
    """log π [S, T] of the completions' tokens from the logits of all of them at once, zero on padding."""
    logits = completion_logits(policy, sequences, temperature)
    return torch.where(sequences.mask, token_logprobs(logits, sequences.completion_ids), 0.0)
