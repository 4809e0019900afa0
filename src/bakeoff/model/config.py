"""The models of a run: a causal LM and its tokenizer, and what is built from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from bakeoff.errors import UserError

SCRATCH = "scratch"


class Precision(Enum):
    """What the forward passes compute in; the weights and their optimiser stay in float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class Lora:
    """Train an adapter of this rank on frozen weights; rank 0 trains the weights themselves.

    The reference is then the actor without its adapter, not a copy. alpha / rank scales the adapter's output.
    """

    rank: int = 0
    alpha: int = 32


@dataclass
class Model:
    """A causal language model, its precision and its prompts' dress.

    name                     a Hugging Face name, a folder, or `scratch`: built from `architecture`, random weights
    architecture             transformers config values, `model_type` among them: of a model from scratch, and of one
                             whose memory is predicted without loading it
    characters               the alphabet of a model from scratch: one token a character
    precision                float32, or bfloat16: autocast over float32 weights
    chat                     prompts are a user's turn of the tokenizer's chat template
    system                   the chat's system message; empty leaves the template's own
    attention                transformers' attn_implementation
    gradient_checkpointing   recompute activations in the backward pass
    lora                     train an adapter instead of the weights
    """

    name: str = MISSING
    architecture: dict[str, Any] = field(default_factory=dict)
    characters: str = ""
    precision: Precision = Precision.float32
    chat: bool = False
    system: str = ""
    attention: str = "sdpa"
    gradient_checkpointing: bool = False
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        if self.lora.rank < 0:
            raise UserError(f"model.lora.rank is {self.lora.rank}; it must be 0 (no adapter) or above.")
        if self.name == SCRATCH and not ("model_type" in self.architecture and self.characters):
            raise UserError(
                "model.name is 'scratch', which needs model.architecture with a model_type and model.characters; "
                "or it may be a Hugging Face name or a folder."
            )
        if not self.name:
            raise UserError("model.name is empty; it must be a Hugging Face name, a folder, or 'scratch'.")
