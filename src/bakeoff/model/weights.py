"""Weights as a whole: copied, hashed, saved."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from bakeoff import processes
from bakeoff.device import HOST
from bakeoff.model.policy import Policy

M = TypeVar("M", bound=nn.Module)
SAMPLE = 4096  # elements of each tensor that a version reads: a step moves nearly all of them


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().to(HOST).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def weights_version(policy: Policy) -> str:
    """Hash of the trained weights as they are now, 16 hex digits: of a sample of each tensor, as it is often asked for.

    Of a prediction's tensors, which have no values, it is empty.
    """
    trained = [tensor.detach().flatten() for tensor in policy.trained().values()]
    if isinstance(trained[0], FakeTensor):
        return ""
    sample = torch.cat([flat[:: max(1, len(flat) // SAMPLE)].float() for flat in trained])
    return hashlib.sha256(sample.to(HOST).numpy().tobytes()).hexdigest()[:16]


def exported(policy: Policy) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names of a checkpoint, an adapter merged into its base; a tied weight has one name."""
    layers = dict(policy.network.named_modules())
    for name, weight in policy.network.named_parameters():
        layer, adapted, kind = name.partition(".base_layer.")
        if adapted:
            delta = layers[layer].get_delta_weight(policy.role) if policy.role and kind == "weight" else 0
            yield f"{layer}.{kind}", weight.detach() + delta
        elif ".lora_" not in name:
            yield name, weight.detach()


def duplicate(module: M, device: torch.device | None = None) -> M:
    """A copy with weights of its own, on the device if one is given.

    Each weight is copied: a deep copy goes by storage, and fake tensors have none.
    """
    memo: dict[int, Any] = {id(b): b.to(device, copy=True) for b in module.buffers()}
    memo |= {id(p): nn.Parameter(p.detach().to(device, copy=True), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, memo)


def save(policy: Policy, folder: Path, adapter: bool = False) -> None:
    """Writes network and tokenizer so that `from_pretrained(folder)` opens them; an adapter is merged in, or alone.

    Of several processes each gives its parts of the weights, and the leader writes.
    """
    network = policy.network
    state = {name: processes.whole(tensor) for name, tensor in network.state_dict().items()}
    if not processes.leads():
        return
    if policy.roles is not None and adapter:
        policy.tokenizer.save_pretrained(folder)
        policy.roles.model.save_pretrained(folder, selected_adapters=[policy.role])
        for path in (folder / policy.role).iterdir():  # peft names a folder by the adapter
            path.replace(folder / path.name)
        (folder / policy.role).rmdir()
        return
    if policy.roles is not None:
        policy.roles.use(policy.role)
        network = duplicate(policy.roles.model, HOST).merge_and_unload(adapter_names=[policy.role])
        state = network.state_dict()
    network.save_pretrained(folder, state_dict=state)
    policy.tokenizer.save_pretrained(folder)


def with_frozen_head(policy: Policy) -> Policy:
    """The policy with its output embedding as it is now, whatever becomes of the network's."""
    head = policy.head
    return replace(policy, frozen_head=duplicate(head).requires_grad_(False) if head.weight.requires_grad else head)


def frozen_copy(policy: Policy) -> Policy:
    """A copy that is never trained: the reference."""
    network = duplicate(policy.network).eval().requires_grad_(False)
    return replace(policy, network=network, name="reference")
