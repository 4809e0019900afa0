"""The critic's networks: a scalar head, alone on the actor's trunk or on a backbone of its own."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff.model.load import Policy


class ValueHead(nn.Module):
    """Hidden states [S, T, H] to values [S, T]."""

    def __init__(self, hidden_size: int, std: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.linear.weight, std=std) if std else nn.init.zeros_(self.linear.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.linear(hidden).squeeze(-1)
        return values


class Critic(nn.Module):
    """A backbone with a scalar head: the article's critic. It starts as a copy of the actor's backbone."""

    def __init__(self, policy: Policy, head_std: float) -> None:
        super().__init__()
        self.backbone: PreTrainedModel = copy.deepcopy(policy.network.base_model)
        self.head: ValueHead = value_head(policy, head_std)


def value_head(policy: Policy, std: float) -> ValueHead:
    """A scalar head for hidden states of the policy's size."""
    return ValueHead(policy.network.config.get_text_config().hidden_size, std)


def frozen_copy(policy: Policy) -> Policy:
    """A copy that is never trained: the reference."""
    network = copy.deepcopy(policy.network).eval().requires_grad_(False)
    return replace(policy, network=network)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
