"""What a prediction makes up in place of decoding: tensors of the sizes of a run, whose values nobody reads."""

from __future__ import annotations

import torch

from bakeoff.batch import Experience, Prompts, Rollout, Sequences
from bakeoff.engine.engine import Batch
from bakeoff.learner.learner import Learner


def imagined_prompts(prompts: int, tokens: int) -> Prompts:
    """Encoded prompts of that number of tokens each."""
    ids = torch.zeros(prompts, tokens, dtype=torch.int64)
    return Prompts([], [], ids, torch.ones_like(ids, dtype=torch.bool))


def imagined_rollout(batch: Batch, prompt: int, completion: int) -> Rollout:
    """The tensors of a decoded rollout."""
    mask = torch.ones(batch.sequences, completion, dtype=torch.bool)
    attention = torch.ones(batch.sequences, prompt + completion, dtype=torch.bool)
    return Rollout(
        examples=[],
        prompts=[],
        completions=[],
        sequences=Sequences(attention.long(), attention, mask, batch.group_size),
        sampler_logprobs=torch.zeros(mask.shape),
        entropy=torch.zeros(mask.shape),
        ended=mask[:, -1],
        max_tokens=completion,
        decode=lambda ids: "",
    )


def imagined_experience(learner: Learner, rollout: Rollout) -> Experience:
    """An experience of a rollout with the tensors that the method needs."""
    one = torch.zeros(rollout.sequences.mask.shape)
    valued = learner.algorithm.critic.exists
    return Experience(
        sequences=rollout.sequences,
        behaviour_logprobs=one,
        advantages=one.clone(),
        max_tokens=rollout.max_tokens,
        entropy=rollout.entropy,
        chosen=torch.zeros_like(rollout.sequences.mask) if learner.algorithm.objective.chooses else None,
        correction=one.clone() if learner.algorithm.correction.corrects else None,
        reference_logprobs=one.clone() if learner.algorithm.kl_to_reference.needs_reference else None,
        values=one.clone() if valued else None,
        returns=one.clone() if valued else None,
    )
