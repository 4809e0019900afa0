"""The tensors that a learner holds between phases, by role and kind: what the memory ledger counts."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bakeoff.attribution import PARKED, Label
from bakeoff.learner.learner import Learner
from bakeoff.processes import own_part


def modules(learner: Learner) -> dict[str, list[nn.Module]]:
    """The networks by role; an adapter's base belongs to the role whose weights it adapts."""
    reward = learner.reward_model.network if learner.reward_model else None
    return {
        "actor": [learner.actor.network, *([learner.head] if learner.head else [])],
        "reference": [learner.reference.network] if learner.reference else [],
        "critic": [learner.critic.trunk.backbone, learner.critic.head] if learner.critic else [],
        "reward_model": [reward.trunk.backbone, reward.head] if reward else [],
    }


def weights(learner: Learner) -> dict[str, list[Tensor]]:
    """Parameters and buffers that each role adds: its adapter is its own, a shared base counts for the first role."""
    adapters = {"critic": learner.critic.trained() if learner.critic else {}, "actor": learner.actor.trained()}
    owner = {id(own_part(tensor)): role for role, tensors in adapters.items() for tensor in tensors.values()}
    added: dict[str, list[Tensor]] = {role: [] for role in modules(learner)}
    seen: set[int] = set()
    for role, networks in modules(learner).items():
        for network in networks:
            for tensor in map(own_part, (*network.parameters(), *network.buffers())):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    added[owner.get(id(tensor), role)].append(tensor)
    if learner.start:
        start = (*learner.start.network.parameters(), *learner.start.network.buffers())
        added["reference"] += [tensor for tensor in start if id(tensor) not in seen]
    if learner.reward_model:
        added["reward_model"] += [learner.reward_model.mean, learner.reward_model.std]
    return added


def weight_bytes(learner: Learner) -> dict[str, int]:
    """Bytes of the weights that each role adds."""
    return {role: sum(tensor.nbytes for tensor in tensors) for role, tensors in weights(learner).items()}


def state(learner: Learner) -> Iterator[tuple[Tensor, Label]]:
    """Every tensor that stays between phases, wherever it is: weights, and the state of the optimisers."""
    for role, tensors in weights(learner).items():
        yield from ((tensor, Label(role, "parameters")) for tensor in tensors)
    for role, optimizer in (("actor", learner.actor_optimizer), ("critic", learner.critic_optimizer)):
        if optimizer is not None:
            yield from ((tensor, Label(role, "optimizer")) for tensor in optimizer_tensors(optimizer))


def held(learner: Learner) -> Iterator[tuple[Tensor, Label]]:
    """The same as the ledger counts it: tensors in the host's memory are parked."""
    for tensor, label in state(learner):
        yield tensor, Label(label.role, PARKED) if id(tensor) in learner.parked else label
    yield from ((tensor, Label("actor", "other")) for weights in learner.older for tensor in weights.values())


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The state of an optimiser, and the masters that it trains in the place of weights."""
    masters = [p for group in optimizer.param_groups for p in group["params"] if not isinstance(p, nn.Parameter)]
    return [*map(own_part, masters)] + [
        own_part(value) for each in optimizer.state.values() for value in each.values() if isinstance(value, Tensor)
    ]
