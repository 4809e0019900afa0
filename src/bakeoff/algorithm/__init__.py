"""A method is a choice on each of twelve axes; `Algorithm` holds one option an axis, in this order.

An option is a dataclass that is both its schema in Hydra (`algorithm/<axis>=<option>`) and the function that
the one path in `loss.py` calls. A named instance, such as `clip_higher`, is an option with other values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bakeoff.algorithm import (
    advantage,
    aggregate,
    baseline,
    critic,
    kl,
    objective,
    ratio,
    sampling,
    scale,
    shaping,
    step,
)


@dataclass
class Algorithm:
    """One choice an axis, as the data flows: what is sampled, what it is worth, how the step is taken."""

    sampling: sampling.Sampling = MISSING
    shaping: shaping.Shaping = MISSING
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
    "sampling": {"once": sampling.Sampling(), "dynamic": sampling.Dynamic()},
    "shaping": {"none": shaping.Shaping(), "overlong": shaping.Overlong()},
    "critic": {
        "none": critic.Critic(),
        "separate": critic.Separate(),
        "shared": critic.Shared(),
        "adapter": critic.Adapter(),
        "pretrained": critic.Separate(warmup_updates=16),  # VC-PPO §4.1; how long is ours
    },
    "baseline": {
        "none": baseline.Baseline(),
        "batch_mean": baseline.BatchMean(),
        "group_mean": baseline.GroupMean(),
        "leave_one_out": baseline.LeaveOneOut(),
        "greedy": baseline.Greedy(),
        "group_step_mean": baseline.GroupStepMean(),
    },
    "advantage": {
        "sequence_return": advantage.SequenceReturn(),
        "reward_to_go": advantage.RewardToGo(),
        "gae": advantage.GAE(),
        "gae_decoupled": advantage.DecoupledGAE(),
    },
    "scale": {
        "none": scale.Scale(),
        "whiten": scale.Whiten(),
        "group_std": scale.GroupStd(),
        "batch_std": scale.BatchStd(),
        "group_step_std": scale.GroupStepStd(),
    },
    "ratio": {
        "token": ratio.TokenRatio(),
        "sequence": ratio.SequenceRatio(),
        "sequence_mean": ratio.SequenceMeanRatio(),
    },
    "objective": {
        "reinforce": objective.Reinforce(),
        "ratio": objective.RatioObjective(),
        "truncated_ratio": objective.TruncatedRatio(),
        "clip": objective.Clip(),
        "clip_higher": objective.Clip(epsilon_high=0.28),  # DAPO, Yu et al. 2025 §3.1
        "clip_sequence": objective.Clip(epsilon_low=3e-4, epsilon_high=4e-4),  # GSPO, Zheng et al. 2025 §5.1
        "cispo": objective.Cispo(),
    },
    "kl_to_reference": {
        "none": kl.KLToReference(),
        "in_reward": kl.InReward(),
        "in_reward_adaptive": kl.InRewardAdaptive(),
        "in_loss": kl.InLoss(),
        "in_loss_iterative": kl.InLossIterative(),
    },
    "kl_to_behaviour": {
        "none": kl.KLToBehaviour(),
        "penalty": kl.Penalty(),
        "adaptive_penalty": kl.AdaptivePenalty(),
    },
    "aggregate": {
        "tokens": aggregate.Tokens(),
        "sequences": aggregate.PerSequence(),
        "sums": aggregate.Sums(),
        "budget": aggregate.TokenBudget(),
    },
    "step": {
        "adam": step.Adam(),
        "adam_once": step.Adam(epochs=1, minibatches=1),
        "adafactor": step.Adafactor(),
        "trpo": step.Trpo(),
    },
}
