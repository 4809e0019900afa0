"""A network from its files, a folder's or the Hub's: whole and of the shape that they describe, or refused."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from typing import Any

import torch
from peft import PeftConfig, PeftModelForCausalLM
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from bakeoff.model.config import Model

NO_CODE: dict[str, Any] = {"trust_remote_code": False}  # code in a model's folder is not executed, nor asked about


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
