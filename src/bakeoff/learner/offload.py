"""What a phase does not use waits in the host's memory, and comes back for the phase that does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bakeoff.attribution import PARKED, attributed
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
            held = list(self.learner.held())
            for tensor, label in held:
                if label.kind != PARKED and id(tensor) not in used:
                    self._move(tensor, label.role, PARKED, torch.device("cpu"))
            for tensor, label in held:
                if label.kind == PARKED and id(tensor) in used:
                    kind = "parameters" if isinstance(tensor, nn.Parameter) else "optimizer"
                    self._move(tensor, label.role, kind, self.phases.device)

    def _move(self, tensor: Tensor, role: str, kind: str, device: torch.device) -> None:
        with attributed(role, kind):
            tensor.data = tensor.data.to(device, copy=True)
        self.learner.parked ^= {id(tensor)}

    def _tensors(self, name: str) -> Iterator[Tensor]:
        """Everything of a model or an optimiser, whoever else uses it."""
        for module in self.learner.modules().get(name, ()):
            yield from module.parameters()
            yield from module.buffers()
        if optimizer := self.learner.optimizers().get(name):
            yield from optimizer_tensors(optimizer)
