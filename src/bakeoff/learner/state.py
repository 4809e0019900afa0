"""What a run carries from one update to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bakeoff.algorithm import Algorithm
from bakeoff.algorithm.critic import Separate, Shared, ValueLoss
from bakeoff.algorithm.loss import Betas
from bakeoff.config import Budget, Unit
from bakeoff.model.critic import Critic, ValueHead, frozen_copy, value_head
from bakeoff.model.load import Policy


@dataclass
class Counters:
    """How far a run is. Seconds are those of training: rollout, reward, experience and update."""

    updates: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def used(self, unit: Unit) -> float:
        return float(getattr(self, unit.value))

    def progress(self, budget: Budget) -> float:
        """The share of the budget that is used."""
        return self.used(budget.unit) / budget.limit


@dataclass
class Learner:
    """The models and what trains them.

    reference   frozen, none where nothing asks for it
    critic      a network of its own, none where there is none or it shares the actor's trunk
    head        the value head on the actor's trunk, none otherwise
    """

    algorithm: Algorithm
    actor: Policy
    reference: Policy | None
    critic: Critic | None
    head: ValueHead | None
    actor_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    betas: Betas
    counters: Counters = field(default_factory=Counters)

    def set_lr_factor(self, factor: float) -> None:
        """Multiplies every optimiser's initial learning rate."""
        for optimizer in filter(None, (self.actor_optimizer, self.critic_optimizer)):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def tensors(self) -> Iterator[Tensor]:
        """Everything that stays in memory between phases: weights, buffers, optimiser state."""
        reference = self.reference.network if self.reference else None
        for module in (self.actor.network, reference, self.critic, self.head):
            if module is not None:
                yield from module.parameters()
                yield from module.buffers()
        for optimizer in filter(None, (self.actor_optimizer, self.critic_optimizer)):
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))


def make_learner(algorithm: Algorithm, actor: Policy, keep_reference: bool, seed: int) -> Learner:
    """Reference and critic from the actor's start, and their optimisers. `seed` draws the critic's head."""
    spec, step = algorithm.critic, algorithm.step
    reference = frozen_copy(actor) if keep_reference or algorithm.kl_to_reference.needs_reference else None
    critic: Critic | None = None
    critic_optimizer: torch.optim.Optimizer | None = None
    head: ValueHead | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(spec, Separate):
            critic = Critic(actor, spec.head_std).to(actor.device)
            critic_optimizer = step.optimizer(critic.parameters(), spec.lr)
        elif isinstance(spec, Shared):
            head = value_head(actor, spec.head_std).to(actor.device)
    actor_parameters = [*actor.network.parameters(), *(head.parameters() if head else ())]
    learner = Learner(
        algorithm=algorithm,
        actor=actor,
        reference=reference,
        critic=critic,
        head=head,
        actor_optimizer=step.optimizer(actor_parameters, step.lr),
        critic_optimizer=critic_optimizer,
        betas=Betas.of(algorithm),
    )
    for optimizer in filter(None, (learner.actor_optimizer, learner.critic_optimizer)):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return learner


def value_spec(learner: Learner) -> ValueLoss | None:
    """The critic's loss, none without a critic."""
    spec = learner.algorithm.critic
    return spec if isinstance(spec, ValueLoss) else None
