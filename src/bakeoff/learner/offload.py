"""Placement: models and optimisers that a phase does not use wait in the host's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bakeoff.attribution import PARKED, Label, attributed
from bakeoff.device import HOST, queued_copy, wait_for
from bakeoff.learner.holdings import modules, optimizer_tensors, state
from bakeoff.learner.learner import Learner
from bakeoff.model.policy import Policy

# phase → the models and optimisers that must be on the device; other phases move nothing
USES: dict[str, tuple[str, ...]] = {
    "rollout": ("actor",),
    "reward": ("reward_model",),
    "experience": ("actor", "reference", "critic"),
    "actor_update": ("actor", "actor_optimizer"),
    "critic_update": ("critic", "critic_optimizer"),
    "behaviour_kl": ("actor",),
    "measure": ("actor",),
    "evaluation": ("actor",),
    "renewal": ("actor", "reference", "reward_model"),
}

STEPS = ("actor_update", "critic_update")


def place_for(learner: Learner, phase: str, device: torch.device) -> None:
    """Moves to the host what the phase does not use, then to the device what it does.

    On the CPU host and device share their memory: copies are made all the same, and the ledger, which does not count
    parked tensors, shows what a device would hold.
    """
    used = {id(tensor) for name in USES.get(phase, ()) for tensor in tensors_of(learner, name)}
    if not used:
        return
    every, parked = list(state(learner)), set(learner.parked)
    here = [(t, label) for t, label in every if id(t) not in parked and t.device.type == device.type]
    move(learner, [(t, Label(label.role, PARKED)) for t, label in here if id(t) not in used], HOST)
    wait_for(device)  # before the host's copies are read; the way back is queued before its readers
    move(learner, [(t, label) for t, label in every if id(t) in used & parked], device)


def move(learner: Learner, tensors: list[tuple[Tensor, Label]], device: torch.device) -> None:
    """Queues a copy of every tensor, counted under its label; the copies take the tensors' places."""
    copies = []
    for tensor, label in tensors:
        with attributed(*label):
            copies.append(queued_copy(tensor, device))
    for (tensor, _), copy in zip(tensors, copies, strict=True):
        tensor.data = copy
        learner.parked ^= {id(tensor)}


@contextmanager
def visiting(learner: Learner, policy: Policy | None) -> Iterator[None]:
    """The frozen policy on the actor's device while the context is open; what is parked of it stays in the host too."""
    weights = (*policy.network.parameters(), *policy.network.buffers()) if policy else ()
    hosted = [(tensor, tensor.data) for tensor in weights if id(tensor) in learner.parked]
    move(learner, [(tensor, Label("reference", "parameters")) for tensor, _ in hosted], learner.actor.device)
    try:
        yield
    finally:
        for tensor, data in hosted:
            tensor.data = data
            learner.parked.add(id(tensor))


def tensors_of(learner: Learner, name: str) -> Iterator[Tensor]:
    """Every tensor of a model or an optimiser, whichever other model uses it too."""
    for module in modules(learner).get(name, ()):
        yield from module.parameters()
        yield from module.buffers()
    if optimizer := learner.optimizers().get(name):
        yield from optimizer_tensors(optimizer)
