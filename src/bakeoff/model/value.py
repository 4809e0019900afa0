"""Networks that estimate a number: a scalar head, on the actor's trunk or on a trunk of its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bakeoff.device import HOST
from bakeoff.model.policy import Policy
from bakeoff.model.roles import Trunk
from bakeoff.model.weights import duplicate


class ValueHead(nn.Module):
    """Values [...] from hidden states [..., H]."""

    def __init__(self, hidden_size: int, std: float) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.bias)
        nn.init.normal_(self.linear.weight, std=std) if std else nn.init.zeros_(self.linear.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        values: Tensor = self.linear(hidden).squeeze(-1)
        return values


@dataclass
class ValueModel:
    """A trunk of its own with a scalar head: a critic, or a reward model."""

    trunk: Trunk
    head: ValueHead

    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name."""
        heads = {f"head.{name}": p for name, p in self.head.named_parameters()}
        return self.trunk.trained() | heads


def separate_model(policy: Policy, head_std: float, name: str = "critic") -> ValueModel:
    """A value model on a copy of the policy's backbone, all of it trained."""
    backbone = duplicate(policy.network.base_model).requires_grad_(True)
    return ValueModel(Trunk(backbone, policy.precision, name), value_head(policy, head_std))


def value_head(policy: Policy, std: float) -> ValueHead:
    """A scalar head for the policy's hidden states, on its device, with the same initial weights on every device."""
    head = ValueHead(policy.network.config.get_text_config().hidden_size, std)
    return head if policy.device == HOST else head.to(policy.device)  # a prediction's fake tensors cannot be moved
