"""What a run carries from one update to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bakeoff.algorithm import Algorithm
from bakeoff.algorithm.critic import Adapter, OwnStep, Separate, Shared
from bakeoff.algorithm.loss import Betas
from bakeoff.attribution import PARKED, Label
from bakeoff.config import Budget, Config, Unit
from bakeoff.measure.phase import Phases
from bakeoff.model import Lora
from bakeoff.model.critic import Critic, ValueHead, frozen_copy, separate_critic, value_head
from bakeoff.model.load import Policy
from bakeoff.model.roles import Trunk, add_role
from bakeoff.reward.model import RewardModel


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
class Passes:
    """How the passes of a run are made.

    temperature   divides the logits
    micro_batch   so many sequences are read at once; 0: all
    logits_mb     so many 10⁶ bytes of logits exist at once; 0: those of a whole micro-batch
    max_tokens    generation budget of a completion, which an aggregation may divide by
    phases        where their time and memory are noted
    """

    temperature: float
    micro_batch: int
    logits_mb: float
    max_tokens: int
    phases: Phases


def passes_of(config: Config, phases: Phases) -> Passes:
    """The passes of a configuration."""
    return Passes(
        temperature=config.rollout.temperature,
        micro_batch=config.micro_batch,
        logits_mb=config.logits_mb,
        max_tokens=config.task.max_new_tokens,
        phases=phases,
    )


@dataclass
class Learner:
    """The models and what trains them.

    reference      frozen, none where nothing asks for it
    critic         a trunk of its own, none where there is none or it shares the actor's
    head           the value head on the actor's trunk, none otherwise
    reward_model   frozen but for the outer iterations of a method; none where the reward is not learned
    parked         which tensors are in the host's memory, by their `id`
    """

    algorithm: Algorithm
    actor: Policy
    reference: Policy | None
    critic: Critic | None
    head: ValueHead | None
    reward_model: RewardModel | None
    actor_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    betas: Betas
    counters: Counters = field(default_factory=Counters)
    parked: set[int] = field(default_factory=set)

    def set_lr(self, progress: float) -> None:
        """Sets every optimiser's learning rate for this update, `progress` of the budget used."""
        step, critic = self.algorithm.step, self.algorithm.critic
        steps = [(self.actor_optimizer, step)]
        if self.critic_optimizer is not None and isinstance(critic, OwnStep):
            steps.append((self.critic_optimizer, critic.step))
        for optimizer, each in steps:
            for group in optimizer.param_groups:
                group["lr"] = each.lr * each.lr_factor(self.counters.updates, progress)

    @property
    def iterates(self) -> bool:
        """Whether the method has outer iterations, in which reference and reward model change."""
        return self.algorithm.kl_to_reference.iteration_updates > 0

    @property
    def iteration_ends(self) -> bool:
        """Whether the last update was the last of an outer iteration."""
        return self.iterates and self.counters.updates % self.algorithm.kl_to_reference.iteration_updates == 0

    @torch.no_grad()
    def renew_reference(self) -> None:
        """The reference becomes the policy."""
        if self.reference is not None:
            for mine, its in zip(self.reference.trained().values(), self.actor.trained().values(), strict=True):
                mine.copy_(its)

    def trained(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that differs from the start, by model and name: what a checkpoint holds."""
        models: dict[str, Mapping[str, Tensor] | None] = {
            "actor": self.actor.trained(),
            "reference": self.reference.trained() if self.reference and self.iterates else None,
            "critic": self.critic.trained() if self.critic else None,
            "value_head": dict(self.head.named_parameters()) if self.head else None,
            "reward_model": self.reward_model.trained() if self.reward_model and self.iterates else None,
        }
        return {name: dict(tensors) for name, tensors in models.items() if tensors}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        named = {"actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}

    def modules(self) -> dict[str, list[nn.Module]]:
        """The networks by role; an adapter's base is the role's whose weights it adapts."""
        reward = self.reward_model.network if self.reward_model else None
        return {
            "actor": [self.actor.network, *([self.head] if self.head else [])],
            "reference": [self.reference.network] if self.reference else [],
            "critic": [self.critic.trunk.backbone, self.critic.head] if self.critic else [],
            "reward_model": [reward.trunk.backbone, reward.head] if reward else [],
        }

    def weights(self) -> dict[str, list[Tensor]]:
        """Parameters and buffers that each role adds: its adapter is its own, a shared base counts for the first."""
        adapters = {"critic": self.critic.trained() if self.critic else {}, "actor": self.actor.trained()}
        owner = {id(tensor): role for role, tensors in adapters.items() for tensor in tensors.values()}
        weights: dict[str, list[Tensor]] = {role: [] for role in self.modules()}
        seen: set[int] = set()
        for role, modules in self.modules().items():
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    if id(tensor) not in seen:
                        seen.add(id(tensor))
                        weights[owner.get(id(tensor), role)].append(tensor)
        if self.reward_model:
            weights["reward_model"] += [self.reward_model.mean, self.reward_model.std]
        return weights

    def weight_bytes(self) -> dict[str, int]:
        """Bytes of the weights that each role adds."""
        return {role: sum(tensor.nbytes for tensor in tensors) for role, tensors in self.weights().items()}

    def state(self) -> Iterator[tuple[Tensor, Label]]:
        """Everything that stays between phases, wherever it is: weights, and the state of the optimisers."""
        for role, tensors in self.weights().items():
            yield from ((tensor, Label(role, "parameters")) for tensor in tensors)
        for role, optimizer in (("actor", self.actor_optimizer), ("critic", self.critic_optimizer)):
            if optimizer is not None:
                yield from ((tensor, Label(role, "optimizer")) for tensor in optimizer_tensors(optimizer))

    def held(self) -> Iterator[tuple[Tensor, Label]]:
        """The same as the ledger counts it: what is in the host's memory is parked."""
        for tensor, label in self.state():
            yield tensor, Label(label.role, PARKED) if id(tensor) in self.parked else label


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The state that an optimiser keeps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def make_learner(
    algorithm: Algorithm,
    actor: Policy,
    lora: Lora,
    keep_reference: bool,
    seed: int,
    reward_model: RewardModel | None = None,
) -> Learner:
    """Reference and critic from the actor's start, and their optimisers. `seed` draws adapters and heads."""
    spec = algorithm.critic
    needs_reference = keep_reference or algorithm.kl_to_reference.needs_reference
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = head = reference = None
        if isinstance(spec, Separate):  # copied before adapters are put into what is copied
            critic = separate_critic(actor, spec.head_std)
        elif isinstance(spec, Shared):
            head = value_head(actor, spec.head_std)
        if lora.rank:
            roles = add_role(actor.network, None, "actor", lora.rank, lora.alpha, seed)
            actor = replace(actor, roles=roles, role="actor")
            if needs_reference and algorithm.kl_to_reference.iteration_updates:
                add_role(actor.network, roles, "reference", lora.rank, lora.alpha, seed)
                reference = replace(actor, role="reference", name="reference")
            elif needs_reference:
                reference = replace(actor, role="", name="reference")
        elif needs_reference or isinstance(spec, Adapter):
            reference = frozen_copy(actor)
        if isinstance(spec, Adapter):
            base = actor if lora.rank else reference
            assert base is not None
            roles = add_role(base.network, base.roles, "critic", spec.rank, spec.alpha, seed)
            base.roles = roles
            trunk = Trunk(base.network.base_model, actor.precision, "critic", roles, "critic")
            critic = Critic(trunk, value_head(actor, spec.head_std))
    critic_optimizer = None
    if critic is not None and isinstance(spec, OwnStep):
        critic_optimizer = spec.step.optimizer(critic.trained().values())
    return Learner(
        algorithm=algorithm,
        actor=actor,
        reference=reference,
        critic=critic,
        head=head,
        reward_model=reward_model,
        actor_optimizer=algorithm.step.optimizer([*actor.parameters(), *(head.parameters() if head else ())]),
        critic_optimizer=critic_optimizer,
        betas=Betas.of(algorithm),
    )
