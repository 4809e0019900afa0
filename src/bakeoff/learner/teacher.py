"""A teacher: another checkpoint, which is the reference of on-policy distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bakeoff.config import Config
from bakeoff.engine.check import check_model
from bakeoff.errors import UserError
from bakeoff.learner.masters import to_bfloat16
from bakeoff.model.build import build
from bakeoff.model.config import Model, Precision
from bakeoff.model.policy import Policy

KEY = "algorithm.kl_to_reference.name"


def teacher_of(config: Config, actor: Policy) -> Policy | None:
    """The reference that the method names, on the actor's device, none where it names none.

    Raises UserError where it cannot be loaded, or where its tokens are not the actor's.
    """

    def load(model: Model) -> Policy:
        policy = build(model, key=KEY)
        policy.network.to(actor.device).eval()
        check_model(policy, model.name, KEY)
        return policy

    return named_reference(config, actor, load)


def named_reference(config: Config, actor: Policy, load: Callable[[Model], Policy]) -> Policy | None:
    """The named reference, by any loader of a model: a prediction's makes no weights. None where none is named.

    Raises UserError where its vocabulary is not the actor's.
    """
    name = config.algorithm.kl_to_reference.name
    if not name:
        return None
    policy = load(replace(config.model, name=name, architecture={}, characters="", attention=""))
    known = actor.tokenizer is not None and policy.tokenizer is not None  # a prediction may have none
    mine, its = (model.tokenizer.get_vocab() if known else {} for model in (actor, policy))
    if mine != its or policy.embedding[0] < actor.embedding[0]:
        raise UserError(
            f"{KEY} is '{name}', whose vocabulary of {len(its)} tokens is not the policy's of {len(mine)}; choose a "
            "teacher with the same tokenizer."
        )
    if config.model.precision is Precision.bfloat16_weights:
        to_bfloat16(policy.network)
    policy.network.requires_grad_(False)
    return replace(policy, name="reference")
