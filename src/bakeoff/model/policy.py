"""A causal LM with its tokenizer, as rollouts and the learner use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bakeoff.attribution import attributed
from bakeoff.model.config import Precision
from bakeoff.model.roles import Roles, Trunk


@dataclass
class Policy:
    """A causal LM with its tokenizer, in one of its roles if it has adapters.

    name          actor or reference: the owner of the memory of its passes
    frozen_head   output embedding in the place of the network's, for a policy that has since moved
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    chat: bool
    system: str = ""
    roles: Roles | None = None
    role: str = ""
    name: str = "actor"
    frozen_head: nn.Linear | None = None

    @property
    def trunk(self) -> Trunk:
        return Trunk(self.network.base_model, self.precision, self.name, self.roles, self.role)

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    @property
    def eos_ids(self) -> list[int]:
        """The token ids that end a completion."""
        return end_ids(self.tokenizer, self.network)

    @property
    def head(self) -> nn.Linear:
        """The output embedding."""
        head: nn.Linear = self.frozen_head or self.network.get_output_embeddings()
        return head

    @property
    def embedding(self) -> torch.Size:
        """[V, H], the shape of the output embedding."""
        shape: torch.Size = self.head.weight.shape
        return shape

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [..., V] in float32, divided by the temperature, from last hidden states [..., H]."""
        with self.trunk.computing(), attributed(kind="logits"):
            return self.scaled(self.products(hidden), temperature)

    def products(self, hidden: Tensor) -> Tensor:
        """The head's matrix times last hidden states [..., H]: [..., V].

        The head computes in its weights' float32 even under autocast: bfloat16 rounds a logit of 16 or more to a
        multiple of 0.125, and the log-prob with it.
        """
        with torch.autocast(self.device.type, enabled=False):
            head = self.head
            products: Tensor = head(hidden.to(head.weight.dtype))
            return products

    def scaled(self, products: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits in float32 from the head's products [..., V]: scaled and capped as the network does."""
        config, logits = self.network.config.get_text_config(), products
        if scale := getattr(config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if divisor := getattr(config, "logits_scaling", None):  # Granite
            logits = logits / divisor
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            logits = cap * torch.tanh(logits / cap)
        logits = at_least_float32(logits)
        return logits if temperature == 1 else logits / temperature

    def parameters(self) -> list[nn.Parameter]:
        """The tensors that an optimiser trains: the adapter of the role, or all weights."""
        return list(self.roles.tensors(self.role).values()) if self.roles else list(self.network.parameters())

    def trained(self) -> dict[str, Tensor]:
        """The same tensors by name; a tied weight has one name."""
        return self.trunk.trained() if self.roles else dict(self.network.named_parameters())


def end_ids(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel) -> list[int]:
    """The token ids that end a completion: the tokenizer's, and those of the network's generation configuration."""
    return sorted({each for each in (tokenizer.eos_token_id, *configured_ends(network)) if each is not None})


def configured_ends(network: PreTrainedModel) -> list[Any]:
    """The values of eos_token_id in the network's generation configuration; empty where it has none."""
    configured = getattr(network.generation_config, "eos_token_id", None)
    return configured if isinstance(configured, list) else [] if configured is None else [configured]


def recomputes(network: nn.Module) -> bool:
    """Whether the network recomputes its activations in a backward pass, which it does in training mode alone."""
    return any(getattr(module, "gradient_checkpointing", False) for module in network.modules())


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 as float32, float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
