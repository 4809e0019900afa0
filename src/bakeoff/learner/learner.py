"""The models of a run and their optimisers: made from the actor's start, and carried from update to update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bakeoff import processes
from bakeoff.algorithm import Algorithm
from bakeoff.algorithm.critic import Adapter, OwnStep, Separate, Shared
from bakeoff.algorithm.loss import Betas
from bakeoff.algorithm.optimizer import Optimizer
from bakeoff.config import Budget, Config
from bakeoff.device import HOST, logits_bound, queued_copy, wait_for
from bakeoff.learner.masters import (
    Masters,
    activations_to_bfloat16,
    embeddings,
    make_masters,
    masters_of,
    round_into_weights,
    to_bfloat16,
)
from bakeoff.learner.sharding import Shard, Shards
from bakeoff.model.config import Precision
from bakeoff.model.forward import ForwardSettings
from bakeoff.model.packing import shares_prompts
from bakeoff.model.policy import Policy
from bakeoff.model.roles import Trunk, add_role
from bakeoff.model.value import ValueHead, ValueModel, separate_model, value_head
from bakeoff.model.weights import frozen_copy
from bakeoff.randomness import derive
from bakeoff.reward.model import RewardModel

Steps = TypeVar("Steps", bound=Optimizer)


@dataclass
class Counters:
    """Progress of a run.

    updates       number of updates
    sequences     number of completions that were sampled
    tokens        number of their tokens
    work          work of tokens that were sampled and read by steps, as `budget` counts it
    seconds       wall-clock seconds in the phases of training
    cpu_seconds   CPU seconds of all threads of the process in these phases
    """

    updates: int = 0
    sequences: int = 0
    tokens: int = 0
    work: float = 0.0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def progress(self, budget: Budget) -> float:
        """Share of the budget that is used."""
        return float(getattr(self, budget.unit.value)) / budget.limit


@dataclass
class Learner:
    """The method, its models, and their optimisers. The method has no other owner.

    forward        how all passes of its models are made
    reference      frozen, for the method's KL or as the base of an adapter critic; none where neither asks for it
    start          the frozen start, where only measuring reads it; it waits in the host's memory. None where the
                   reference is the start, and where the KL to the start is not measured
    critic         a critic with a trunk of its own; none where there is none or it shares the actor's
    head           the value head on the actor's trunk; none otherwise
    reward_model   frozen but for the outer iterations of a method; none where the reward is not learned
    older          trained weights of the actor before each of the last `lag` updates; the sampler has the oldest
    masters        float32 masters of the trained weights that are in bfloat16
    shards         the models whose weights the processes hold in parts
    parked         `id` of the tensors that are in the host's memory
    """

    algorithm: Algorithm
    forward: ForwardSettings
    actor: Policy
    reference: Policy | None
    start: Policy | None
    critic: ValueModel | None
    head: ValueHead | None
    reward_model: RewardModel | None
    actor_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None
    betas: Betas
    older: list[dict[str, Tensor]] = field(default_factory=list)
    masters: Masters = field(default_factory=dict)
    shards: Shards = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    parked: set[int] = field(default_factory=set)

    @property
    def iterates(self) -> bool:
        """Whether the method has outer iterations, in which reference and reward model change."""
        return self.algorithm.kl_to_reference.iteration_updates > 0

    @property
    def reference_is_start(self) -> bool:
        """Whether the method itself computes the KL to its start: its reference is neither renewed nor a teacher."""
        kl = self.algorithm.kl_to_reference
        return kl.needs_reference and not self.iterates and not kl.name

    @property
    def iteration_ends(self) -> bool:
        """Whether the last update was the last of an outer iteration."""
        return self.iterates and self.counters.updates % self.algorithm.kl_to_reference.iteration_updates == 0

    def trained(self) -> dict[str, dict[str, Tensor]]:
        """Every tensor that differs from the start, by model and name: the weights of a checkpoint."""
        models: dict[str, Mapping[str, Tensor] | None] = {
            "actor": self.actor.trained(),
            "reference": self.reference.trained() if self.reference and self.iterates else None,
            "critic": self.critic.trained() if self.critic else None,
            "value_head": dict(self.head.named_parameters()) if self.head else None,
            "reward_model": self.reward_model.trained() if self.reward_model and self.iterates else None,
            **{f"older_{slot}": weights for slot, weights in enumerate(self.older)},
        }
        return {
            name: dict(zip(tensors, masters_of(self.masters, tensors.values()), strict=True))
            for name, tensors in models.items()
            if tensors
        }

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimisers by name."""
        named = {"actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer}
        return {name: optimizer for name, optimizer in named.items() if optimizer is not None}


def set_lr(learner: Learner, update: int, progress: float) -> float:
    """Sets every optimiser's learning rate for this update, `progress` of the budget used; returns the actor's."""
    actor, critic = learner.algorithm.optimizer, learner.algorithm.critic
    pairs = [(learner.actor_optimizer, actor)]
    if learner.critic_optimizer is not None and isinstance(critic, OwnStep):
        pairs.append((learner.critic_optimizer, critic.optimizer))
    for optimizer, option in pairs:
        for group in optimizer.param_groups:
            group["lr"] = option.lr * option.lr_factor(update, progress)
    rate: float = learner.actor_optimizer.param_groups[0]["lr"]
    return rate


@contextmanager
def sampling_policy(learner: Learner) -> Iterator[Policy]:
    """The policy that samples an update: the actor, or as it was `lag` updates ago while the context is open.

    The slots of `older` are a ring: update n finds the weights before update n − lag in one, and leaves its own there.
    """
    slot = learner.older[learner.counters.updates % len(learner.older)] if learner.older else {}
    pairs = [(weight, slot[name]) for name, weight in learner.actor.trained().items() if slot]
    exchange(pairs)
    try:
        yield learner.actor
    finally:
        exchange(pairs)
    with torch.no_grad():
        for weight, older in pairs:
            older.copy_(weight)


def exchange(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Swaps the values of two tensors of each pair, without a copy."""
    for one, other in pairs:
        one.data, other.data = other.data, one.data


@torch.no_grad()
def renew_reference(learner: Learner) -> None:
    """Makes the reference the current policy."""
    if learner.reference is not None:
        for mine, its in zip(learner.reference.trained().values(), learner.actor.trained().values(), strict=True):
            mine.copy_(its)


def method_of(config: Config) -> Algorithm:
    """The method as a run uses it: rates, or a trust region's radius, times the factor of its seed, and epochs times
    `reuse` where it allows reuse.
    """
    algorithm, factors = config.algorithm, config.lr_factors or [1.0]
    factor = factors[config.seed % len(factors)]
    reuses = not (algorithm.objective.fresh_only or algorithm.optimizer.needs_whole_rollout)

    def adapted(optimizer: Steps) -> Steps:
        return replace(optimizer.scaled(factor), epochs=optimizer.epochs * (config.reuse if reuses else 1))

    critic = algorithm.critic
    if isinstance(critic, OwnStep):
        critic = replace(critic, optimizer=adapted(critic.optimizer))
    return replace(algorithm, optimizer=adapted(algorithm.optimizer), critic=critic)


def passes_over(algorithm: Algorithm, actor_moves: bool = True) -> int:
    """Number of times that the steps of an update read each token of its rollout: the epochs of actor and critic."""
    critic = algorithm.critic.optimizer.epochs if isinstance(algorithm.critic, OwnStep) else 0
    return critic + (algorithm.optimizer.epochs if actor_moves else 0)


def make_learner(
    config: Config, actor: Policy, reward_model: RewardModel | None = None, teacher: Policy | None = None
) -> Learner:
    """Reference and critic from the actor's start, and all optimisers; a teacher is the reference in its place."""
    algorithm = method_of(config)
    lora, spec = config.model.lora, algorithm.critic
    seed = derive(config.seed, "critic")  # draws adapters and heads
    needs_reference = teacher is None and algorithm.kl_to_reference.needs_reference
    renewed = algorithm.kl_to_reference.iteration_updates > 0
    measures = config.measure.kl_to_start and (renewed or not needs_reference)
    low = config.model.precision is Precision.bfloat16_weights
    sharded = processes.size() > 1 and config.shard
    if low:  # before copies are made
        if not sharded:
            to_bfloat16(actor.network)
        if reward_model is not None and not algorithm.kl_to_reference.iteration_updates:
            to_bfloat16(reward_model.network.trunk.backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic, head, reference, start = None, None, teacher, None
        if isinstance(spec, Separate):  # copied before adapters are put into what is copied
            critic = separate_model(actor, spec.head_std)
        elif isinstance(spec, Shared):
            head = value_head(actor, spec.head_std)
        if lora.rank:
            roles = add_role(actor.network, None, "actor", lora.rank, lora.alpha, seed)
            actor = replace(actor, roles=roles, role="actor")
            if needs_reference:  # the frozen base, or an adapter of its own where it is renewed
                reference = replace(actor, role="reference" if renewed else "", name="reference")
                if renewed:
                    add_role(actor.network, roles, "reference", lora.rank, lora.alpha, seed)
            start = replace(actor, role="", name="reference") if measures else None
        elif needs_reference or isinstance(spec, Adapter):
            reference = frozen_copy(actor)
        if isinstance(spec, Adapter):
            base = actor if lora.rank else reference
            assert base is not None
            roles = add_role(base.network, base.roles, "critic", spec.rank, spec.alpha, seed)
            trunk = Trunk(base.network.base_model, actor.precision, "critic", roles, "critic")
            critic = ValueModel(trunk, value_head(actor, spec.head_std))
            if reference is not None and reference is not teacher:
                reference = replace(reference, roles=roles)
        if measures and start is None:
            start = frozen_copy(actor) if renewed or reference is None or reference is teacher else reference
            if low and sharded:
                to_bfloat16(start.network)
    trunks = [each.trunk for each in (actor, reference, start, critic) if each is not None]
    trunks += [reward_model.network.trunk] if reward_model is not None else []
    shards = in_shards(actor, head, critic, reference, low) if sharded else {}
    trained = [*actor.parameters(), *(head.parameters() if head else ())]
    masters = make_masters("actor", trained)
    actor_optimizer, critic_optimizer = algorithm.optimizer.create(masters_of(masters, trained)), None
    if critic is not None and isinstance(spec, OwnStep):
        masters |= make_masters("critic", critic.trained().values())
        critic_optimizer = spec.optimizer.create(masters_of(masters, critic.trained().values()))
    learner = Learner(
        algorithm=algorithm,
        forward=ForwardSettings(
            temperature=config.sampling.temperature,
            micro_tokens=config.micro_tokens,
            logits_mb=logits_bound(config.logits_mb, actor.device),
            shares_prompts=all(shares_prompts(trunk.backbone) for trunk in trunks),
        ),
        actor=actor,
        reference=reference,
        start=start,
        critic=critic,
        head=head,
        reward_model=reward_model,
        actor_optimizer=actor_optimizer,
        critic_optimizer=critic_optimizer,
        betas=Betas.of(algorithm),
        older=[{name: w.detach().clone() for name, w in actor.trained().items()} for _ in range(config.lag)],
        masters=masters,
        shards=shards,
    )
    for optimizer in learner.optimizers().values() if masters else ():
        optimizer.register_step_post_hook(lambda *_: round_into_weights(masters))
    if start is not None and not any(start.network is each.network for each in (actor, reference) if each):
        for tensor in (*start.network.parameters(), *start.network.buffers()):
            tensor.data = queued_copy(tensor, HOST)
            learner.parked.add(id(tensor))
        wait_for(actor.device)
    return learner


def in_shards(
    actor: Policy, head: ValueHead | None, critic: ValueModel | None, reference: Policy | None, low: bool
) -> Shards:
    """Has the processes hold the weights of these models in parts; `low` ones are gathered in bfloat16."""
    models: dict[str, tuple[PreTrainedModel, ValueHead | None]] = {"actor": (actor.network, head)}
    if critic is not None:
        models["critic"] = critic.trunk.backbone, critic.head
    if reference is not None:
        models["reference"] = reference.network, None
    found: Shards = {}
    for name, (network, own) in models.items():
        if low and name == "reference":
            to_bfloat16(network)
        elif low:
            activations_to_bfloat16(network)
        precise = [*embeddings(network), *([own] if own else [])]
        found[name] = Shard([network, *([own] if own else [])], precise, actor.device, low and name != "reference")
    return found
