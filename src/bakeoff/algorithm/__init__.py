"""A method is a choice on each of ten axes; `Algorithm` holds one option an axis, in this order.

An option is a dataclass that is both its schema in Hydra (`algorithm/<axis>=<option>`) and the function that
the one path in `loss.py` calls. A named instance, such as `clip_higher`, is an option with other values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bakeoff.algorithm import advantage, aggregate, baseline, critic, kl, objective, ratio, scale, step


@dataclass
class Algorithm:
    """One choice an axis: which baseline, which surrogate, where the KL sits, how the step is taken."""

    critic: critic.Critic = MISSING
    baseline: baseline.Baseline = MISSING
    advantage: advantage.Advantage = MISSING
    scale: scale.Scale = MISSING
    ratio: ratio.Ratio = MISSING
    objective: objective.Objective = MISSING
    kl_to_reference: kl.KLToReference = MISSING
    kl_to_behaviour: kl.KLToBehaviour = MISSING
    aggregate: aggregate.Aggregate = MISSING
    step: step.Step = MISSING


AXES: dict[str, dict[str, Any]] = {
    "critic": {"none": critic.Critic(), "separate": critic.Separate(), "shared": critic.Shared()},
    "baseline": {"none": baseline.Baseline(), "group_mean": baseline.GroupMean()},
    "advantage": {"gae": advantage.GAE(), "sequence_return": advantage.SequenceReturn()},
    "scale": {"none": scale.Scale(), "whiten": scale.Whiten(), "group_std": scale.GroupStd()},
    "ratio": {"token": ratio.TokenRatio()},
    "objective": {
        "ratio": objective.RatioObjective(),
        "clip": objective.Clip(),
        "clip_higher": objective.Clip(epsilon_high=0.28),  # DAPO, Yu et al. 2025 §3.1
    },
    "kl_to_reference": {
        "none": kl.KLToReference(),
        "in_reward": kl.InReward(),
        "in_reward_adaptive": kl.InRewardAdaptive(),
        "in_loss": kl.InLoss(),
    },
    "kl_to_behaviour": {
        "none": kl.KLToBehaviour(),
        "penalty": kl.Penalty(),
        "adaptive_penalty": kl.AdaptivePenalty(),
    },
    "aggregate": {"tokens": aggregate.Tokens(), "sequences": aggregate.PerSequence()},
    "step": {"adam": step.Adam()},
}
