"""Weights as a whole: copied, hashed, saved."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bakeoff.device import HOST
from bakeoff.model.policy import Policy

M = TypeVar("M", bound=nn.Module)


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


def save(policy: Policy, folder: Path, adapter: bool = False) -> None:
    """Writes network and tokenizer so that `from_pretrained(folder)` opens them; an adapter is merged in, or alone."""
    network = policy.network
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
    network.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def with_frozen_head(policy: Policy) -> Policy:
    """The policy with its output embedding as it is now, whatever becomes of the network's."""
    head = policy.head
    return replace(policy, frozen_head=duplicate(head).requires_grad_(False) if head.weight.requires_grad else head)


def frozen_copy(policy: Policy) -> Policy:
    """A copy that is never trained: the reference."""
    network = duplicate(policy.network).eval().requires_grad_(False)
    return replace(policy, network=network, name="reference")
