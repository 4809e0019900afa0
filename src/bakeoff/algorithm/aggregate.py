"""How the contributions of tokens become one number.

An aggregation is a weight for every token, computed once over the whole minibatch and passed down, so that
splitting the minibatch into micro-batches changes neither loss nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Aggregate:
    """Weights of tokens in the loss."""

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        """Weights [S, T] (float64) of a minibatch with this mask [S, T], zero on padding.

        `max_tokens` is the generation budget of a completion, which padding may fall short of; `group_size` is the
        number of consecutive rows that share a prompt.
        """
        raise NotImplementedError


@dataclass
class PerToken(Aggregate):
    """Mean over all tokens of the minibatch: long completions weigh more. As in PPO and DAPO (eq. 8)."""

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        return mask.double() / mask.sum()


@dataclass
class PerSequence(Aggregate):
    """Mean over the tokens of each sequence, then over sequences: DeepSeekMath eq. 3."""

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        return mask.double() / mask.sum(1, keepdim=True).clamp(min=1) / mask.shape[0]


@dataclass
class Sums(Aggregate):
    """Sum over the tokens of each sequence, mean over sequences: the policy gradient, as Williams 1992 has it."""

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        return mask.double() / mask.shape[0]


@dataclass
class TokenBudget(Aggregate):
    """The sum over a *fixed* number of tokens, the generation budget: Liu et al. 2025 (Dr. GRPO) §3.2."""

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        return mask.double() / (mask.shape[0] * max_tokens)


@dataclass
class PerPrompt(Aggregate):
    """Mean over all tokens of a prompt's completions, then over prompts: Khatri et al. 2025 (ScaleRL).

    In groups of one it is the mean over sequences. A prompt whose completions have no token counts zero.
    """

    def __call__(self, mask: Tensor, max_tokens: int, group_size: int = 1) -> Tensor:
        tokens = mask.view(-1, group_size, mask.shape[1]).sum((1, 2)).clamp(min=1)
        return mask.double() / tokens.repeat_interleave(group_size)[:, None] / len(tokens)
