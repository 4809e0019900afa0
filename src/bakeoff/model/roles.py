"""LoRA roles on one frozen base: actor, critic and reference without a second copy of the weights.

Hu et al. 2022 (arXiv:2106.09685) for LoRA; peft holds the adapters, inside the network that they adapt.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from transformers import PreTrainedModel

from bakeoff.attribution import attributed
from bakeoff.device import HOST
from bakeoff.model.config import Precision


@dataclass
class Roles:
    """A network whose layers hold one adapter per role. Without a role it computes as its frozen base does.

    model    a PeftModel, whose attributes are dynamic
    in_use   the role of the next pass; none where peft has chosen it
    """

    model: Any
    in_use: str | None = None

    def use(self, role: str) -> None:
        """Puts every later pass in this role, recomputations in a backward pass included; '' is the base alone.

        Returns at once where the role is in use: peft visits every layer, and decoding asks for every token.
        """
        if role == self.in_use:
            return
        if role:
            self.model.base_model.enable_adapter_layers()
            self.model.set_adapter(role)
        else:
            self.model.base_model.disable_adapter_layers()
        self.in_use = role

    def tensors(self, role: str) -> dict[str, nn.Parameter]:
        """The adapter of a role, by name."""
        return {name: p for name, p in self.model.named_parameters() if f".{role}." in name}


def add_role(network: PreTrainedModel, roles: Roles | None, role: str, rank: int, alpha: int, seed: int) -> Roles:
    """Gives every linear layer but the output embedding an adapter that begins as no change; freezes the rest."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0)
    predicted = isinstance(next(network.parameters()), FakeTensor)
    with torch.random.fork_rng(devices=[]), on_meta() if predicted else nullcontext():
        torch.manual_seed(seed)
        if roles is None:
            roles = Roles(get_peft_model(network, config, adapter_name=role))
        else:
            roles.model.add_adapter(role, config)
            roles.in_use = None
    if predicted:
        fill(roles.model)
    return roles


@contextmanager
def on_meta() -> Iterator[None]:
    """Makes adapters on the meta device: peft moves all others to their layer's device, which fake tensors refuse."""
    with unset_fake_temporarily(), torch.device("meta"):
        yield


def fill(model: nn.Module) -> None:
    """Replaces every meta parameter by a fake one in the host's memory."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                empty = torch.empty(parameter.shape, device=HOST)
                setattr(module, name, nn.Parameter(empty, parameter.requires_grad))


@dataclass
class Trunk:
    """A backbone in one of its roles, through which passes run.

    name   the model whose trunk it is, which owns the memory of its passes: actor, critic, …
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
        """The context of every pass: its role, its precision, and the owner of its memory."""
        if self.roles is not None:
            self.roles.use(self.role)
        low = self.precision is Precision.bfloat16
        with attributed(self.name, "activations"), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            yield

    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes, by name: the adapter of the role, or the whole backbone."""
        return dict(self.roles.tensors(self.role)) if self.roles else dict(self.backbone.named_parameters())
