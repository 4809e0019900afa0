"""A causal LM and its tokenizer, loaded or built from an architecture."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any

import torch
import transformers
from peft import PeftConfig, PeftModelForCausalLM
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
from transformers.utils import find_adapter_config_file

from bakeoff.device import is_out_of_memory
from bakeoff.errors import UserError, redacted
from bakeoff.model.config import SCRATCH, Model
from bakeoff.model.policy import Policy, end_ids

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # code in a model's folder is not executed, nor asked about
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


def saved_network(name: str, model: Model, tokenizer: PreTrainedTokenizerBase, revision: str | None = None) -> Any:
    """The network in a folder or on the Hub, in float32; of an adapter, that of its base with the adapter merged in.

    All of its weights are trainable. Raises ValueError where it lacks a weight: libraries fill it with random values.
    """
    config = adapter_of(name, revision)
    if config is None:
        network, found = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision or "main",
            dtype=torch.float32,
            attn_implementation=model.attention or None,
            **NO_CODE,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused by name
        )
        require_every_weight(network, found)
        return network
    base = saved_network(config.base_model_name_or_path, model, tokenizer, config.revision)
    if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(len(tokenizer))
    adapted = PeftModelForCausalLM(base, config)
    with warnings.catch_warnings(action="ignore"):  # on what is refused next
        loaded = adapted.load_adapter(name, adapted.active_adapter, revision=revision)
    if loaded.missing_keys:
        raise ValueError(f"the adapter lacks {some(loaded.missing_keys)}")
    if loaded.unexpected_keys:
        raise ValueError(f"the adapter has {some(loaded.unexpected_keys)}, which fit no layer of its base")
    network = adapted.merge_and_unload().requires_grad_(True)
    network.name_or_path = name  # the base of an adapter that is trained on it
    return network


def adapter_of(name: str, revision: str | None = None) -> PeftConfig | None:
    """The configuration of an adapter, as checkpoint.adapter saves one, none for a whole model.

    Raises ValueError where it names no base.
    """
    if find_adapter_config_file(name, revision=revision) is None:
        return None
    config = PeftConfig.from_pretrained(name, revision=revision)
    if not config.base_model_name_or_path:
        raise ValueError("its adapter_config.json has no base_model_name_or_path")
    return config


def base_of(name: str) -> str:
    """The name of the whole model below an adapter, or below adapters of adapters; any other name as it is."""
    config = adapter_of(name)
    return base_of(config.base_model_name_or_path) if config else name


def require_every_weight(network: PreTrainedModel, found: dict[str, Any]) -> None:
    """Raises ValueError where the files lack a weight of the network, have it in another shape, or have more layers.

    `found` is the report of transformers, which leaves out tied weights, and the further layers that the files of some
    models have for another use. A buffer is computed, not learned. Weights without a place in the network are no
    fault, such as heads of other uses, unless they are further layers of it: then config.json is of a smaller network.
    """
    if lacking := {name for name, _ in network.named_parameters(remove_duplicate=False)} & set(found["missing_keys"]):
        raise ValueError(f"its files lack {some(lacking)}")
    if reshaped := {name: shapes for name, *shapes in found["mismatched_keys"]}:
        name = min(reshaped)
        has, needs = (list(shape) for shape in reshaped[name])
        raise ValueError(f"its files have {some(reshaped)} in another shape: {name} is {has}, and must be {needs}")
    stacks = {name: len(module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)}
    for stack, layers in stacks.items():
        own = re.escape(stack.removeprefix(prefix := f"{network.base_model_prefix}."))
        inside = re.compile(rf"(?:{re.escape(prefix)})?{own}\.(\d+)\.")
        numbers = {int(match[1]) for name in found["unexpected_keys"] if (match := inside.match(name))}
        if numbers and max(numbers) >= layers:
            raise ValueError(f"its files have {max(numbers) + 1} layers in {stack}, but its config.json {layers}")


def some(names: Collection[str]) -> str:
    """Number of the tensors and the first of their names: `12 tensors (a, b, c, …)`."""
    first = sorted(names)[:3]
    more = ", …" if len(names) > len(first) else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(first)}{more})"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, network: PreTrainedModel, model: Model, key: str) -> None:
    """Raises UserError where the tokenizer cannot end a text, or has tokens that the network does not have.

    A tokenizer without padding pads with the token that ends a text: passes never read it.
    """
    if model.chat and not tokenizer.chat_template:
        raise UserError(f"model.chat is true, but the tokenizer of '{model.name}' has no chat template.")
    configured = getattr(network.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    if not all(type(each) is int and each >= 0 for each in listed):
        raise UserError(
            f"{key} is '{model.name}', whose generation_config.json has eos_token_id={configured!r}; it must be a "
            "token id, or a list of them."
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
