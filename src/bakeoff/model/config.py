"""Configuration of the model: a causal LM, its precision, its prompts and its adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from bakeoff.errors import UserError
from bakeoff.ranges import VAST, count, number

SCRATCH = "scratch"


class Precision(Enum):
    """Precision of the passes; what an optimiser trains stays in float32.

    float32            weights and passes
    bfloat16           autocast: matrix products in bfloat16, of weights in float32
    bfloat16_weights   weights but for embeddings, and activations, in bfloat16; trained weights have float32 masters
    """

    float32 = "float32"
    bfloat16 = "bfloat16"
    bfloat16_weights = "bfloat16_weights"


@dataclass
class Lora:
    """Train an adapter of this rank on frozen weights; rank 0 trains the weights themselves.

    The reference is then the actor without its adapter, not a copy.

    rank    rank of the adapter; 0: none
    alpha   alpha / rank scales the adapter's output
    """

    rank: int = count(0, most=2**16)
    alpha: int = count(32, least=1)


@dataclass
class Model:
    """A causal language model.

    name                     a Hugging Face name, a folder, or `scratch`: built from `architecture` with random weights
    architecture             transformers config values with a `model_type`, for a model from scratch and for a model
                             whose memory is predicted without loading it
    characters               alphabet of a model from scratch, one token per character
    precision                float32; bfloat16: autocast over float32 weights; or bfloat16_weights: weights in
                             bfloat16, with float32 masters of those that are trained
    chat                     whether prompts are a user's turn of the tokenizer's chat template
    system                   system message of the chat; empty keeps the template's own
    attention                transformers' attn_implementation; empty leaves the choice to it
    gradient_checkpointing   recompute activations in the backward pass
    lora                     train an adapter instead of the weights
    """

    name: str = MISSING
    architecture: dict[str, Any] = number(dict, least=0, most=VAST)
    characters: str = ""
    precision: Precision = Precision.float32
    chat: bool = False
    system: str = ""
    attention: str = ""
    gradient_checkpointing: bool = False
    lora: Lora = field(default_factory=Lora)

    def __post_init__(self) -> None:
        if self.name.startswith("~"):  # a shell expands it at the beginning of a word alone
            self.name = str(Path(self.name).expanduser())
        if self.name == SCRATCH and not ("model_type" in self.architecture and self.characters):
            raise UserError(
                "model.name is 'scratch', which needs model.architecture with a model_type and model.characters; "
                "or it may be a Hugging Face name or a folder."
            )
        if self.name == SCRATCH and self.chat:
            raise UserError("model.chat is true, but a model from scratch has no chat template; set it to false.")
        if len(set(self.characters)) < len(self.characters):
            raise UserError(f"model.characters is {self.characters!r}; no character may be there twice.")
        if not self.name:
            raise UserError("model.name is empty; it must be a Hugging Face name, a folder, or 'scratch'.")

    def files(self) -> dict[str, str]:
        """The folder of weights and tokenizer, where the name is one."""
        return {"name": self.name} if Path(self.name).is_dir() else {}
