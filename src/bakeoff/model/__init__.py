"""The models of a run: a causal LM and its tokenizer, and what is built from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from bakeoff.errors import UserError


class Precision(Enum):
    """What the forward passes compute in; the weights and their optimiser stay in float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class Model:
    """A causal language model, its precision and its prompts' dress.

    name                     a Hugging Face name, a folder, or `scratch`: built from `architecture`, random weights
    architecture             transformers config values of a model from scratch, `model_type` among them
    characters               the alphabet of a model from scratch: one token a character
    precision                float32, or bfloat16: autocast over float32 weights
    chat                     prompts are a user's turn of the tokenizer's chat template
    system                   the chat's system message; empty leaves the template's own
    attention                transformers' attn_implementation
    gradient_checkpointing   recompute activations in the backward pass
    """

    name: str = MISSING
    architecture: dict[str, Any] = field(default_factory=dict)
    characters: str = ""
    precision: Precision = Precision.float32
    chat: bool = False
    system: str = ""
    attention: str = "sdpa"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.name == "scratch" and not ("model_type" in self.architecture and self.characters):
            raise UserError(
                "model.name is 'scratch', which needs model.architecture with a model_type and model.characters; "
                "or it may be a Hugging Face name or a folder."
            )
        if not self.name:
            raise UserError("model.name is empty; it must be a Hugging Face name, a folder, or 'scratch'.")
