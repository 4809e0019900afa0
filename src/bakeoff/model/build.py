"""A causal LM and its tokenizer, loaded or built from an architecture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from bakeoff.device import is_out_of_memory
from bakeoff.errors import UserError, redacted
from bakeoff.model.config import SCRATCH, Model
from bakeoff.model.policy import Policy, configured_ends, end_ids
from bakeoff.model.saved import NO_CODE, base_of, saved_network

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
SOUND: set[str] = set()  # architectures that this process has checked: the jobs of a sweep share theirs

transformers.utils.logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per character, after <pad>, <bos> and <eos>; other characters are an error."""
    vocabulary = {token: index for index, token in enumerate([PAD, BOS, EOS, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def build(model: Model, seed: int = 0, key: str = "model.name") -> Policy:
    """The policy that `model` describes, in the host's memory and float32; raises UserError if it cannot be loaded.

    `key` is that of the configuration which names it.
    """
    if model.name == SCRATCH:
        tokenizer: PreTrainedTokenizerBase = character_tokenizer(model.characters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = from_architecture(model, tokenizer)
    else:
        with loadable(model, key):
            tokenizer = AutoTokenizer.from_pretrained(model.name, **NO_CODE)
            network = saved_network(model.name, model, tokenizer)
        check_tokenizer(tokenizer, network, model, key)
    return prepared(network, tokenizer, model)


@contextmanager
def loadable(model: Model, key: str) -> Iterator[None]:
    """Raises UserError for whatever a library makes of the files that `model.name` stands for.

    Memory that does not suffice is no fault of the files.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        hint = " (run `make smollm2` first)" if "smollm2" in model.name.lower() else ""
        first, *rest = str(error).strip().splitlines() or [""]
        said = " ".join([first, *(rest[:1] if first.rstrip().endswith(":") else [])])
        kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
        raise UserError(
            f"{key} is '{model.name}', which cannot be loaded{hint}; it must be a Hugging Face name or a "
            f"folder with a causal LM and its tokenizer: {redacted(shorten(kind + said, 300, placeholder=' …'))}"
        ) from error


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel, model: Model, key: str) -> None:
    """Raises UserError where the tokenizer cannot end a text, or has tokens that the network does not have.

    A tokenizer without padding pads with the token that ends a text: passes never read it.
    """
    if model.chat and not tokenizer.chat_template:
        raise UserError(f"model.chat is true, but the tokenizer of '{model.name}' has no chat template.")
    if not all(type(each) is int and each >= 0 for each in configured_ends(network)):
        raise UserError(
            f"{key} is '{model.name}', whose generation_config.json has "
            f"eos_token_id={network.generation_config.eos_token_id!r}; it must be a token id, or a list of them."
        )
    ends = end_ids(tokenizer, network)
    if not ends:
        raise UserError(
            f"{key} is '{model.name}', whose tokenizer has no token that ends a text; set eos_token in its "
            "tokenizer_config.json, or eos_token_id in its generation_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends[0])
    rows, largest = network.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values())
    if max(largest, *ends) >= rows:
        raise UserError(
            f"{key} is '{model.name}', whose tokenizer has ids up to {max(largest, *ends)}, but the model embeds "
            f"only {rows} tokens; resize its embedding (resize_token_embeddings) and save it again."
        )


def skeleton(model: Model, key: str = "model.name") -> Policy:
    """The policy that `model` describes, without its weights: for a prediction, under FakeTensorMode.

    Of a model with an architecture nothing is loaded but a tokenizer, of characters or where this machine has it.
    """
    tokenizer = character_tokenizer(model.characters) if model.characters else None
    if model.architecture:
        return prepared(from_architecture(model, tokenizer), tokenizer or tokenizer_here(model.name), model)
    with loadable(model, key):
        tokenizer = AutoTokenizer.from_pretrained(model.name, **NO_CODE)
        config = AutoConfig.from_pretrained(base_of(model.name), **NO_CODE)
        network = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=model.attention or None
        )
    return prepared(network, tokenizer, model)


def tokenizer_here(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a model in a folder or in the Hub's cache, none where this machine has neither."""
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, local_files_only=True, **NO_CODE)
    except Exception:  # of a folder that is no model's, whatever a library makes of it
        return None
    return found


def from_architecture(model: Model, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedModel:
    """The network of `model.architecture` in float32 with random weights; raises UserError where it cannot be built."""
    values = {key: value for key, value in model.architecture.items() if key != "model_type"}
    if tokenizer is not None:
        values |= {f"{t}_token_id": getattr(tokenizer, f"{t}_token_id") for t in ("pad", "bos", "eos")}
        values.setdefault("vocab_size", len(tokenizer))
    with buildable(model):
        config = AutoConfig.for_model(model.architecture["model_type"], **values)
        known = {*type(config)().to_dict(), *config.attribute_map, *("rope_theta", "rope_scaling")}
        if unknown := sorted(set(model.architecture) - known):
            raise ValueError(f"a {config.model_type} has no {', '.join(unknown)}")
        if not 1 <= getattr(config, "num_hidden_layers", 1) <= 1000:
            raise ValueError(f"num_hidden_layers is {config.num_hidden_layers}; it must be at least 1 and at most 1000")
        if tokenizer is not None and config.vocab_size < len(tokenizer):
            raise ValueError(f"vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} tokens")
        network: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=model.attention or None
        )
    return network


@contextmanager
def buildable(model: Model) -> Iterator[None]:
    """Raises UserError for whatever transformers makes of a wrong value in `model.architecture`."""
    try:
        yield
    except Exception as error:
        reason = shorten(str(error), 300, placeholder=" …").rstrip(".")
        raise UserError(f"model.architecture is {model.architecture}, which cannot be built: {reason}.") from error


def check_architecture(model: Model) -> None:
    """Raises UserError if `model.architecture` cannot be built or cannot read two tokens; allocates no memory."""
    described = repr((model.architecture, model.characters, model.attention))
    if described in SOUND:
        return
    tokenizer = character_tokenizer(model.characters) if model.characters else None
    with torch.device("meta"):
        network = from_architecture(model, tokenizer)
        with buildable(model):
            if model.attention == "flex_attention":  # it has no kernel for tensors without values
                network.set_attn_implementation("eager")
            network.base_model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    SOUND.add(described)


def prepared(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model: Model) -> Policy:
    """The network without dropout, and with recomputed activations if the configuration says so."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # log-probs of one policy must not depend on the pass that computes them
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)  # of layers that call dropout as a function
    if model.gradient_checkpointing:
        network.gradient_checkpointing_enable({"use_reentrant": False})
    return Policy(network, tokenizer, model.precision, model.chat, model.system)
