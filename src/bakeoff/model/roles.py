"""LoRA roles on one frozen base: actor, critic and reference without a second copy of the weights.

Hu et al. 2022 (arXiv:2106.09685) for LoRA; peft holds the adapters, inside the network that they adapt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from bakeoff.attribution import attributed
from bakeoff.model import Precision


@dataclass
class Roles:
    """A network whose layers hold one adapter a role. Without a role it computes as its frozen base does."""

    model: Any  # a PeftModel, whose attributes peft makes up as it goes

    def use(self, role: str) -> None:
        """Every pass from now on is in this role; '' is the base alone. Stays so for a backward that recomputes."""
        if role:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(role)
        else:
            self.model.base_model.disable_adapter_layers()

    def tensors(self, role: str) -> dict[str, nn.Parameter]:
        """The adapter of a role, by name."""
        return {name: p for name, p in self.model.named_parameters() if f".{role}." in name}


def add_role(network: PreTrainedModel, roles: Roles | None, role: str, rank: int, alpha: int, seed: int) -> Roles:
    """Gives every linear layer but the output embedding an adapter that begins as no change; freezes the rest."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if roles is None:
            return Roles(get_peft_model(network, config, adapter_name=role))
        roles.model.add_adapter(role, config)
        return roles


@dataclass
class Trunk:
    """A backbone in one of its roles: what a pass runs through.

    name   the model whose trunk it is, to whom the memory of its passes is put down: actor, critic, …
    role   its adapter among `roles`; empty: the base alone
    """

    backbone: PreTrainedModel
    precision: Precision
    name: str
    roles: Roles | None = None
    role: str = ""

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.backbone.parameters()).device
        return device

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The context of every pass; takes up the role."""
        if self.roles is not None:
            self.roles.use(self.role)
        low = self.precision is Precision.bfloat16
        with attributed(self.name, "activations"), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            yield

    def trained(self) -> dict[str, Tensor]:
        """What training changes, by name: the adapter of the role, or the whole backbone."""
        return dict(self.roles.tensors(self.role)) if self.roles else dict(self.backbone.named_parameters())
