"""What a phase does not use waits in the host's memory, and comes back for the phase that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bakeoff.attribution import PARKED, Label, attributed
from bakeoff.device import HOST, queued_copy, wait_for
from bakeoff.learner.state import Learner, optimizer_tensors
from bakeoff.measure.phase import Phases

# phase → the models and optimisers that must be on the device; other phases move nothing
USES: dict[str, tuple[str, ...]] = {
    "rollout": ("actor",),
    "reward": ("reward_model",),
    "experience": ("actor", "reference", "critic"),
    "actor_update": ("actor", "actor_optimizer"),
    "critic_update": ("critic", "critic_optimizer"),
    "measure": ("actor",),
    "evaluation": ("actor",),
    "renewal": ("actor", "reference", "reward_model"),
}


@dataclass
class Offload:
    """Called with the name of every phase before it begins; its own time is the phase `offload`.

    On the CPU host and device share their memory: copies are made all the same, and the ledger, which does not
    count what is parked, shows what a device would hold.
    """

    learner: Learner
    phases: Phases

    def __call__(self, phase: str) -> None:
        """Moves out what the phase does not use, then in what it does."""
        used = {id(tensor) for name in USES.get(phase, ()) for tensor in self._tensors(name)}
        if not used:
            return
        with self.phases("offload"):
            device, state, parked = self.phases.device, list(self.learner.state()), set(self.learner.parked)
            returning = used & parked
            here = [(t, label) for t, label in state if id(t) not in parked and t.device.type == device.type]
            self._move([(t, Label(label.role, PARKED)) for t, label in here if id(t) not in used], HOST)
            wait_for(device)  # before the host's copies are read; the way back is queued before its readers
            self._move([(t, label) for t, label in state if id(t) in returning], device)

    def _move(self, tensors: list[tuple[Tensor, Label]], device: torch.device) -> None:
        """Queues a copy of every tensor, to be counted under its label, and lets the copies take their places."""
        copies = []
        for tensor, label in tensors:
            with attributed(*label):
                copies.append(queued_copy(tensor, device))
        for (tensor, _), copy in zip(tensors, copies, strict=True):
            tensor.data = copy
            self.learner.parked ^= {id(tensor)}

    def _tensors(self, name: str) -> Iterator[Tensor]:
        """Everything of a model or an optimiser, whoever else uses it."""
        for module in self.learner.modules().get(name, ()):
            yield from module.parameters()
            yield from module.buffers()
        if optimizer := self.learner.optimizers().get(name):
            yield from optimizer_tensors(optimizer)
