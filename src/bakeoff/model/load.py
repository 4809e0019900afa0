"""Building and loading a causal LM and its tokenizer; saving them so that transformers opens them."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bakeoff.attribution import attributed
from bakeoff.batch import Example, Prompts, Sequences
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.model import SCRATCH, Model, Precision
from bakeoff.model.roles import Roles, Trunk

M = TypeVar("M", bound=nn.Module)
PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

transformers.utils.logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


@dataclass
class Policy:
    """A causal LM with its tokenizer, as rollout and learner use them; in a role where it has adapters.

    name   actor or reference: to whom the memory of its passes is put down
    """

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    precision: Precision
    chat: bool
    system: str = ""
    roles: Roles | None = None
    role: str = ""
    name: str = "actor"

    @property
    def trunk(self) -> Trunk:
        return Trunk(self.network.base_model, self.precision, self.name, self.roles, self.role)

    @property
    def device(self) -> torch.device:
        return self.trunk.device

    @property
    def eos_ids(self) -> Tensor:
        """Every token id that ends a completion, [number of them]."""
        configured = getattr(self.network.generation_config, "eos_token_id", None)
        ids = {self.tokenizer.eos_token_id} | set(configured if isinstance(configured, list) else [configured])
        return torch.tensor(sorted(i for i in ids if i is not None), device=self.device)

    @property
    def embedding(self) -> torch.Size:
        """[V, H], the shape of the output embedding."""
        shape: torch.Size = self.network.get_output_embeddings().weight.shape
        return shape

    def logits(self, hidden: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [..., V] in float32 over the temperature, as the network makes them of last hidden states [..., H].

        The head computes in its weights' float32 under autocast too: bfloat16 rounds a logit of 16 or more to a
        multiple of 0.125, and a log-prob with it.
        """
        config = self.network.config.get_text_config()
        with self.trunk.computing(), attributed(kind="logits"):
            head = self.network.get_output_embeddings()
            with torch.autocast(self.device.type, enabled=False):
                logits: Tensor = head(hidden.to(head.weight.dtype))
            if scale := getattr(config, "logit_scale", None):  # Cohere
                logits = logits * scale
            if divisor := getattr(config, "logits_scaling", None):  # Granite
                logits = logits / divisor
            if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
                logits = cap * torch.tanh(logits / cap)
            logits = at_least_float32(logits)
            return logits if temperature == 1 else logits / temperature

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser trains: the adapter of the role, or all weights."""
        return list(self.roles.tensors(self.role).values()) if self.roles else list(self.network.parameters())

    def trained(self) -> dict[str, Tensor]:
        """The same by name; a tied weight has one name."""
        return self.trunk.trained() if self.roles else dict(self.network.named_parameters())


def at_least_float32(x: Tensor) -> Tensor:
    """bfloat16 as float32, float64 as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """One token a character, after <pad>, <bos> and <eos>; a character outside the alphabet is an error."""
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def build(model: Model, seed: int = 0) -> Policy:
    """The policy that `model` describes, in the host's memory and float32; raises UserError where it cannot be had."""
    if model.name == SCRATCH:
        tokenizer: PreTrainedTokenizerBase = character_tokenizer(model.characters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = from_architecture(model, tokenizer)
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(model.name)
            network = AutoModelForCausalLM.from_pretrained(
                model.name, dtype=torch.float32, attn_implementation=model.attention
            )
        except (OSError, ValueError, ImportError) as error:
            hint = " (run `make smollm2` first)" if "smollm2" in model.name.lower() else ""
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"model.name is '{model.name}', which cannot be loaded{hint}; it must be a Hugging Face name or a "
                f"folder with a causal LM and its tokenizer: {reason}"
            ) from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.chat and not tokenizer.chat_template:
            raise UserError(f"model.chat is true, but the tokenizer of '{model.name}' has no chat template.")
    policy = prepared(network, tokenizer, model)
    check_logits(policy, model.name)
    return policy


def skeleton(model: Model) -> Policy:
    """The policy that `model` describes with whatever weights there are, for a prediction: in a mode of fake tensors.

    Of a model that has an architecture nothing is loaded, not even a tokenizer (unless it is one of characters).
    """
    tokenizer = character_tokenizer(model.characters) if model.characters else None
    if model.architecture:
        return prepared(from_architecture(model, tokenizer), tokenizer, model)
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(model.name), AutoConfig.from_pretrained(model.name)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.name is '{model.name}', whose configuration is not here and model.architecture is empty; choose "
            "one of the architectures in conf/model, or a folder with a model."
        ) from error
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=model.attention)
    return prepared(network, tokenizer, model)


def from_architecture(model: Model, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    """The network of `model.architecture` in float32 with random weights; raises UserError where it cannot be built."""
    values = {key: value for key, value in model.architecture.items() if key != "model_type"}
    if tokenizer is not None:
        values |= {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("pad", "bos", "eos")}
        values.setdefault("vocab_size", len(tokenizer))
    try:
        config = AutoConfig.for_model(model.architecture["model_type"], **values)
        network: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=model.attention
        )
    except Exception as error:  # whatever transformers makes of a wrong value
        reason = " ".join(str(error).split())
        raise UserError(f"model.architecture is {model.architecture}, which cannot be built: {reason}") from error
    return network


def prepared(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: Model) -> Policy:
    """The network as every run has it: without dropout, and recomputing its activations where that is asked for."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # log-probs of one policy must not depend on the pass that computes them
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(network, tokenizer, model.precision, model.chat, model.system)


@torch.no_grad()
def check_logits(policy: Policy, name: str) -> None:
    """Raises UserError where the network makes its logits in a way that `Policy.logits` does not know."""
    ids = torch.tensor([[policy.tokenizer.eos_token_id or 0] * 2])
    own = policy.network(input_ids=ids).logits
    ours = policy.logits(policy.network.base_model(input_ids=ids).last_hidden_state)
    if not torch.allclose(at_least_float32(own), ours, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"model.name is '{name}', whose logits are not made of its last hidden states in a way that is known here; "
            "it must be a causal LM with a plain head, or one scaled or capped as in Cohere, Granite and Gemma."
        )


def render(policy: Policy, example: Example, shots: list[Example]) -> str:
    """The text of a prompt: a chat's turns, or the solved examples a line each, before the question."""
    if not policy.chat:
        return "".join(f"{shot.prompt}{shot.answer}\n" for shot in shots) + example.prompt
    turns = [(shot.prompt, shot.answer) for shot in shots]
    messages = [{"role": "system", "content": policy.system}] if policy.system else []
    messages += [{"role": r, "content": c} for q, a in turns for r, c in (("user", q), ("assistant", a))]
    messages.append({"role": "user", "content": example.prompt})
    return str(policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def encode(policy: Policy, examples: list[Example], shots: list[Example]) -> Prompts:
    """Prompts on the policy's device, left-padded; raises UserError where the vocabulary lacks a character."""
    tokenizer = policy.tokenizer
    texts = [render(policy, example, shots) for example in examples]
    rows = tokenizer(texts, add_special_tokens=not policy.chat)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if tokenizer.unk_token_id is None and tokenizer.pad_token_id in row and tokenizer.pad_token not in text:
            missing = next(c for c in text if c not in tokenizer.get_vocab())
            raise UserError(
                f"task: the prompt {text[:40]!r} has the character {missing!r}, which is not among "
                "model.characters; choose a task whose prompts this model can read, or another model."
            )
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    attention = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        attention[index, width - len(row) :] = True
    return Prompts(examples, texts, ids.to(policy.device), attention.to(policy.device))


def complete(policy: Policy, examples: list[Example], texts: list[str], shots: list[Example]) -> Sequences:
    """Prompts with given completions, each ended by EOS; examples that stand side by side may repeat."""
    prompts = encode(policy, examples, shots)
    eos = policy.tokenizer.eos_token_id
    rows = [policy.tokenizer(text, add_special_tokens=False)["input_ids"] + [eos] for text in texts]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=policy.device)
    lengths = torch.tensor([len(row) for row in rows], device=policy.device)
    mask = torch.arange(width, device=policy.device) < lengths[:, None]
    return Sequences(torch.cat([prompts.ids, ids], 1), torch.cat([prompts.attention, mask], 1), mask)


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().to(HOST).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def duplicate(module: M, device: torch.device | None = None) -> M:
    """A copy with weights of its own, on the device if one is given.

    Each weight is copied: a deep copy goes by storage, and fake tensors have none.
    """
    memo: dict[int, Any] = {id(b): b.to(device, copy=True) for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to(device, copy=True), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def save(policy: Policy, folder: Path) -> None:
    """Writes network and tokenizer so that `from_pretrained(folder)` opens them; an adapter is merged in."""
    network = policy.network
    if policy.roles is not None:
        policy.roles.use(policy.role)
        network = duplicate(policy.roles.model, HOST).merge_and_unload(adapter_names=[policy.role])
    network.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
