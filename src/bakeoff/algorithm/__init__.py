"""A method is a choice on each of fourteen axes; `Algorithm` holds one option per axis, in this order.

An option is a dataclass that is both its schema in Hydra (`algorithm/<axis>=<option>`) and the function that
the one path in `loss.py` calls. A named instance, such as `clip_higher`, is an option with other values.

A class attribute without an annotation, or annotated as ClassVar, is a property of the option, not a key. Where the
absence of a choice has a meaning, such as no baseline, the base class of the axis is that option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from bakeoff.algorithm import (
    advantage,
    aggregate,
    baseline,
    correction,
    critic,
    entropy,
    group_filter,
    kl,
    objective,
    optimizer,
    ratio,
    scale,
    shaping,
)


@dataclass
class Algorithm:
    """One option per axis, in the order in which the data flow: sampled groups, rewards, advantages, loss, step."""

    group_filter: group_filter.GroupFilter = MISSING
    shaping: shaping.Shaping = MISSING
    critic: critic.Critic = MISSING
    baseline: baseline.Baseline = MISSING
    advantage: advantage.Advantage = MISSING
    scale: scale.Scale = MISSING
    ratio: ratio.Ratio = MISSING
    objective: objective.Objective = MISSING
    correction: correction.Correction = MISSING
    kl_to_reference: kl.KLToReference = MISSING
    kl_to_behaviour: kl.KLToBehaviour = MISSING
    entropy: entropy.Entropy = MISSING
    aggregate: aggregate.Aggregate = MISSING
    optimizer: optimizer.Optimizer = MISSING


AXES: dict[str, dict[str, Any]] = {
    "group_filter": {"none": group_filter.GroupFilter(), "dynamic": group_filter.Dynamic()},
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
        "opo": baseline.LengthWeightedMean(),
        "leave_one_out": baseline.LeaveOneOut(),
        "greedy": baseline.Greedy(),
        "group_step_mean": baseline.GroupStepMean(),
    },
    "advantage": {
        "sequence_return": advantage.SequenceReturn(),
        "reward_to_go": advantage.RewardToGo(),
        "token_reward": advantage.RewardToGo(gamma=0.0),
        "gae": advantage.GAE(),
        "gae_decoupled": advantage.DecoupledGAE(),
        "gae_length": advantage.LengthAdaptiveGAE(),
    },
    "scale": {
        "none": scale.Scale(),
        "whiten": scale.Whiten(),
        "group_std": scale.GroupStd(),
        "maxrl": scale.GroupShare(),
        "gpg": scale.NonzeroShare(),
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
        "dual_clip": objective.DualClip(),
        "delta": objective.DualClip(cap=4.0),  # INTELLECT-2, Prime Intellect 2025
        "opsm": objective.SequenceMask(),
        "sapo": objective.SoftGate(),
        "clip_cov": objective.ClipCovariance(),
        "kl_cov": objective.KLCovariance(),
        "cispo": objective.Cispo(),
        "binary_tv": objective.BinaryTotalVariation(),
        "geometric_mean": objective.GeometricMean(),
    },
    "correction": {
        "none": correction.Correction(),
        "truncate": correction.Truncate(),
        "truncate_sequence": correction.Truncate(level=correction.Level.sequence),
        "mask_sequence": correction.Mask(level=correction.Level.sequence),
        "icepop": correction.Mask(least=0.5, most=5.0),  # Ling Team 2025 (arXiv:2510.18855) §2.3
        "mask_sequence_3": correction.Mask(level=correction.Level.sequence, most=3.0),  # TRL's default
        "gate": correction.Gate(),
    },
    "kl_to_reference": {
        "none": kl.KLToReference(),
        "in_reward": kl.InReward(),
        "in_reward_adaptive": kl.InRewardAdaptive(),
        "distillation": kl.Distillation(),
        "in_loss": kl.InLoss(),
        "in_loss_k2": kl.InLoss(beta=0.01, estimator=kl.Estimator.k2),  # Hu et al. 2025; β is ours
        "in_loss_iterative": kl.InLossIterative(),
    },
    "kl_to_behaviour": {
        "none": kl.KLToBehaviour(),
        "penalty": kl.Penalty(),
        "adaptive_penalty": kl.AdaptivePenalty(),
    },
    "entropy": {"none": entropy.Entropy(), "bonus": entropy.Bonus(), "adaptive": entropy.Adaptive()},
    "aggregate": {
        "tokens": aggregate.PerToken(),
        "sequences": aggregate.PerSequence(),
        "by_prompt": aggregate.PerPrompt(),
        "sums": aggregate.Sums(),
        "max_tokens": aggregate.TokenBudget(),
    },
    "optimizer": {
        "adam": optimizer.Adam(),
        "adam_once": optimizer.Adam(epochs=1, minibatches=1),
        "adafactor": optimizer.Adafactor(),
        "trpo": optimizer.Trpo(),
    },
}
