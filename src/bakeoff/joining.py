"""Several rollouts, and what was said of them, as one."""

from __future__ import annotations

import torch
from torch import Tensor

from bakeoff.batch import Rollout, Scores, Sequences, Steps


def join_rollouts(parts: list[Rollout], pad: int) -> Rollout:
    """Rollouts one after the other; narrower ones are padded with the id `pad`."""
    if len(parts) == 1:
        return parts[0]
    left = max(part.sequences.prompt_width for part in parts)
    right = max(part.sequences.mask.shape[1] for part in parts)

    def wide(part: Rollout, x: Tensor, value: float = 0) -> Tensor:
        missing = left - part.sequences.prompt_width if x.shape[1] > part.sequences.mask.shape[1] else 0
        return pad_columns(x, missing, right - part.sequences.mask.shape[1], value)

    sequences = Sequences(
        ids=torch.cat([wide(part, part.sequences.ids, pad) for part in parts]),
        attention=torch.cat([wide(part, part.sequences.attention) for part in parts]),
        mask=torch.cat([wide(part, part.sequences.mask) for part in parts]),
        group_size=parts[0].group_size,
    )
    return Rollout(
        examples=[example for part in parts for example in part.examples],
        prompts=[prompt for part in parts for prompt in part.prompts],
        completions=[completion for part in parts for completion in part.completions],
        group_size=parts[0].group_size,
        sequences=sequences,
        decode=parts[0].decode,
        sampler_logprobs=torch.cat([wide(part, part.sampler_logprobs) for part in parts]),
        entropy=torch.cat([wide(part, part.entropy) for part in parts]),
        ended=torch.cat([part.ended for part in parts]),
    )


def join_scores(parts: list[Scores]) -> Scores:
    """Scores one after the other."""
    if len(parts) == 1:
        return parts[0]
    sizes = torch.tensor([0, *(len(part.outcome) for part in parts)]).cumsum(0).tolist()
    steps = [(first, part.steps) for first, part in zip(sizes, parts, strict=False) if part.steps is not None]
    return Scores(
        outcome=torch.cat([part.outcome for part in parts]),
        exact=torch.cat([part.exact for part in parts]),
        true=torch.cat([part.true for part in parts]),
        terms={name: torch.cat([part.terms[name] for part in parts]) for name in parts[0].terms},
        steps=Steps(
            row=torch.cat([each.row + first for first, each in steps]),
            token=torch.cat([each.token for _, each in steps]),
            score=torch.cat([each.score for _, each in steps]),
        )
        if steps
        else None,
    )


def pad_columns(x: Tensor, left: int, right: int, value: float = 0) -> Tensor:
    """x [S, N] with so many columns of a value on either side."""
    return torch.nn.functional.pad(x, (left, right), value=value)
