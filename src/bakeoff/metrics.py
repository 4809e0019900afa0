"""Every metric: its name, unit and definition, and the one place where statistics get their names.

Nothing reads a metric back: what steers a run are the typed statistics that are named here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bakeoff.batch import Rollout, Scores
from bakeoff.heldout import HeldOut
from bakeoff.learner.learner import Counters
from bakeoff.learner.reward_training import PairQuality
from bakeoff.loop import Update
from bakeoff.measure.phase import Measured, Peak, largest_peak
from bakeoff.rows import Scalar, numbers

# name → (unit, definition). `*` stands for a phase or a reward function. docs/metrics.md is written from this.
DEFINITIONS: dict[str, tuple[str, str]] = {
    "sft/steps": ("steps", "steps of the supervised stage that made the start"),
    "sft/accuracy": (
        "share",
        "sampled completions of the start that are right on fresh prompts, where sft.accuracy is set",
    ),
    "reward/mean": ("score", "mean total reward of the rollout's completions, before any KL"),
    "reward/std": ("score", "standard deviation of the total reward over the rollout"),
    "reward/quantile_10": ("score", "total reward that a tenth of the rollout's completions do not exceed"),
    "reward/median": ("score", "the same for half of them"),
    "reward/quantile_90": ("score", "the same for nine tenths of them"),
    "reward/exact_match": ("share", "completions to which the task's verifier gives full marks"),
    "reward/true": ("score", "mean true reward: the task's own grade in [0, 1], whatever the method is trained on"),
    "reward/failed": ("share", "completions for which the verifier or a reward function gave no score, counted as 0"),
    "reward/zero_spread_groups": ("share", "groups in which all completions have the same reward"),
    "reward/shaped": ("share", "completions whose score the method's shaping changes"),
    "reward/term_*": ("score", "mean of one reward function, unweighted, over the completions to which it applies"),
    "reward/term_*_min": ("score", "smallest of these scores in the rollout"),
    "reward/term_*_max": ("score", "largest of these scores in the rollout"),
    "user/*": (
        "–",
        "your own metric (measure.functions) on the rollout: its number, or the mean of its list",
    ),
    "length/mean": ("tokens", "mean completion length, EOS included"),
    "length/max": ("tokens", "longest completion of the rollout"),
    "length/eos_share": ("share", "completions that end with EOS within the budget"),
    "rollout/rounds": ("–", "number of times that prompts were drawn; 1 unless the method filters groups"),
    "rollout/sampler_mismatch": (
        "nats",
        "mean absolute difference of log π, engine against training forward, where the engine is not exact",
    ),
    "rollout/sampler_k3": ("nats/token", "KL(π_sampler‖π_old) on the rollout, estimated by k3"),
    "rollout/sampler_chi2": ("–", "χ² of π_old and π_sampler: mean of (π_old/π_sampler)² over tokens, less 1"),
    "rollout/sampler_perplexity_ratio": ("–", "perplexity of the completions under π_old ÷ that under the sampler"),
    "correction/mean": ("–", "mean weight of the correction over tokens, where the method has one"),
    "correction/bounded": ("share", "tokens whose weight the correction truncates or sets to zero"),
    "policy/entropy": ("nats/token", "mean entropy of π_old over the vocabulary, at the sampling temperature"),
    "policy/loss": ("–", "loss that the actor minimises, mean over minibatches"),
    "policy/ratio_mean": ("–", "mean ratio, over minibatches"),
    "policy/ratio_max": ("–", "largest ratio of the update"),
    "policy/effective_sample_size": (
        "share",
        "(Σ ratio)²/(n·Σ ratio²) over tokens, mean over minibatches: the share of samples that still count",
    ),
    "policy/clip_fraction": ("share", "tokens on which the clip makes the surrogate flat, mean over minibatches"),
    "policy/first_ratio_error": (
        "–",
        "largest distance of the ratio from 1 in a rollout's first minibatch; ideally 0",
    ),
    "policy/first_clip_fraction": ("share", "clip fraction of a rollout's first minibatch; ideally 0"),
    "policy/gradient_norm": ("–", "norm of the actor's gradient before clipping, mean over minibatches"),
    "policy/gradient_clipped": (
        "share",
        "minibatches in which that norm is above max_gradient_norm, which shortens it",
    ),
    "policy/cg_residual": ("–", "TRPO: ‖g − F·x‖/‖g‖ after the conjugate gradient"),
    "policy/step_norm": ("–", "TRPO: norm of the step taken; 0 where none was accepted"),
    "policy/backtracks": ("–", "TRPO: number of times the step was shortened"),
    "policy/accepted": ("share", "TRPO: whether a step was accepted"),
    "policy/predicted_improvement": ("–", "TRPO: g·x of the full step, the predicted gain of the surrogate"),
    "policy/actual_improvement": ("–", "TRPO: gain of the surrogate by the step taken"),
    "policy/step_kl": ("nats/token", "TRPO: mean exact KL(π_old‖π_θ) over the vocabulary after the step taken"),
    "policy/entropy_coefficient": ("–", "coefficient of the entropy bonus, even where a rule has turned the bonus off"),
    "policy/lr": ("–", "learning rate of the actor"),
    "advantage/mean": ("–", "mean advantage over tokens, after scaling"),
    "advantage/std": ("–", "standard deviation of the advantage over tokens, after scaling"),
    "advantage/zero": ("share", "tokens whose advantage is zero, which teach nothing"),
    "advantage/correlation": (
        "–",
        "mode=advantage_quality: correlation of unscaled advantages with the truth, all tokens",
    ),
    "advantage/correlation_ceiling": ("–", "the same between two estimates of the truth: an upper bound"),
    "advantage/bias": ("score", "mean of unscaled advantage less truth"),
    "advantage/rank_accuracy": (
        "share",
        "pairs of tokens at one position of one prompt that the advantages order as the truth does; ½ is chance",
    ),
    "advantage/*_by_position": ("–", "the same at one position of the completion; the step is the position, from 0"),
    "gradient/cosine": ("–", "mode=gradient_quality: mean cosine of a rollout's gradient with the policy gradient"),
    "gradient/alignment": ("–", "cosine of the mean gradient with the policy gradient, corrected for noise"),
    "gradient/bias": ("–", "sine of that angle: the error that no number of samples removes"),
    "gradient/relative_variance": ("–", "trace of the gradient's covariance over the square of its mean's norm"),
    "gradient/snr": ("–", "its inverse: signal to noise of one rollout"),
    "gradient/snr_per_1000_tokens": ("–", "the same per 1000 completion tokens"),
    "gradient/snr_per_second": ("–", "the same per second of a rollout and its gradient, without training of a critic"),
    "gradient/norm": ("–", "norm of the mean gradient, corrected for noise"),
    "gradient/tokens": ("tokens", "completion tokens of a rollout"),
    "gradient/seconds": ("s", "seconds of a rollout, its scores, its experience and its gradient"),
    "critic/value_loss": ("score²", "½·(V − R)², mean over minibatches"),
    "critic/value_clip_fraction": (
        "share",
        "tokens on which algorithm.critic.value_clip makes the value loss flat, mean over minibatches",
    ),
    "critic/explained_variance": ("–", "1 − Var(R − V)/Var(R) at the rollout, before the update"),
    "critic/value_mean": ("score", "mean value at the rollout"),
    "critic/gradient_norm": ("–", "norm of the critic's gradient before clipping, mean over minibatches"),
    "critic/gradient_clipped": ("share", "minibatches in which that norm is above the critic's max_gradient_norm"),
    "reward_model/new_pair_accuracy": (
        "share",
        "pairs of the policy's own completions that the reward model ranks right, when an outer iteration ends",
    ),
    "reward_model/new_pair_accuracy_after": ("share", "the same pairs after the reward model was trained on them"),
    "reward_model/heldout_pair_accuracy": ("share", "held-out pairs of the start that the reward model ranks right"),
    "reward_model/heldout_loss": ("nats", "Bradley–Terry loss on these pairs"),
    "reward_model/calibration_error": ("share", "mean distance of stated and observed accuracy on these pairs"),
    "kl/reference_exact_per_token": (
        "nats/token",
        "exact KL(π_old‖π_start), where the method's own passes give the logits of both",
    ),
    "kl/reference_k*_per_token": (
        "nats/token",
        "estimator k1, k2 or k3 of KL(π_old‖π_start), to the start whatever the method's reference, mean over tokens",
    ),
    "kl/reference_k*_per_sequence": ("nats/sequence", "the same, summed over each sequence, mean over sequences"),
    "kl/teacher_k*_per_token": ("nats/token", "the same of KL(π_old‖π_teacher), where the reference is a teacher"),
    "kl/teacher_k*_per_sequence": ("nats/sequence", "the same, summed over each sequence, mean over sequences"),
    "kl/behaviour_k*_per_token": (
        "nats/token",
        "k1, k2 or k3 of KL(π_old‖π_θ) after the update, over measure.kl_sequences or, with an adaptive β, all",
    ),
    "kl/behaviour_k*_per_sequence": ("nats/sequence", "the same, summed over each sequence, mean over sequences"),
    "kl/beta_reference": ("–", "coefficient of the KL to the reference in this update"),
    "kl/beta_behaviour": ("–", "coefficient of the KL to the behaviour policy in this update"),
    "eval/greedy_accuracy": ("share", "exact match on the held-out prompts, greedy decoding"),
    "eval/sampled_accuracy": (
        "share",
        "exact match on the held-out prompts, sampled as in training: mean@n for n = evaluation.samples",
    ),
    "eval/sampled_accuracy_of_*": (
        "share",
        "the same on the prompts of one difficulty, where the task has several: on sort, the number of digits",
    ),
    "eval/pass_at_*": ("share", "prompts for which any of k sampled completions is right, unbiased, k = 2, 4 … n"),
    "eval/failed": ("share", "held-out completions, greedy and sampled, that could not be scored; they count as wrong"),
    "eval/greedy_length": ("tokens", "mean completion length of greedy decoding, EOS included"),
    "eval/right_length": ("tokens", "mean length of the sampled completions that are right, EOS included"),
    "eval/wrong_length": ("tokens", "the same of those that are wrong"),
    "eval/user/*": ("–", "your own metric on the sampled completions of an evaluation"),
    "progress/sequences": ("sequences", "completions sampled for training so far"),
    "progress/tokens": ("tokens", "completion tokens sampled for training so far"),
    "progress/work": ("tokens", "work so far: tokens that steps read, plus sampled tokens × budget.sampling_price"),
    "progress/seconds": ("s", "time in the phases of training so far"),
    "progress/cpu_seconds": ("s", "time of all threads of the process in these phases: other processes affect it less"),
    "speed/tokens_per_second": ("tokens/s", "completion tokens of this step over its training time"),
    "time/predicted_*": ("s", "mode=predict with hardware=NAME: predicted time of a phase of an update on that device"),
    "time/predicted_hours": ("h", "predicted time of all updates of the budget"),
    "time/*": ("s", "time in one phase of this step"),
    "memory/weights_*_mb": ("MB", "parameters that a role adds (actor, reference, critic, reward_model), 10⁶ bytes"),
    "memory/peak_mb": ("MB", "the largest peak of the phases of training, 10⁶ bytes"),
    "memory/rss_mb": ("MB", "CPU: peak resident memory of the whole process since the last update, Python included"),
    "memory/predicted_*_mb": ("MB", "with measure.memory_prediction: the predicted peak of a phase"),
    "memory/*_reserved_mb": ("MB", "CUDA: the most that the allocator held from the device in a phase"),
    "memory/*_mb": (
        "MB",
        "peak of a phase (CUDA: of the allocator; CPU: of live tensor bytes); `memory/PHASE/ROLE_KIND_mb`: bytes of "
        "one kind that a role holds at that peak; `memory/PHASE/remainder_mb`: bytes that the allocator counts and no "
        "tensor explains",
    ),
}

QUANTILES = {0.1: "reward/quantile_10", 0.5: "reward/median", 0.9: "reward/quantile_90"}


def definitions_table() -> str:
    """docs/metrics.md."""
    head = """# Metrics

A run logs these once per update, `eval/*` where it evaluates, `gradient/*` and `advantage/*` in the mode of that
name. `*` stands for a phase or a reward function; `critic/*` exists where there is a critic. `make docs` writes this
page from `bakeoff/metrics.py`.

| metric | unit | definition |
|---|---|---|
"""
    return head + "".join(f"| `{name}` | {unit} | {text} |\n" for name, (unit, text) in DEFINITIONS.items())


def named(prefix: str, statistics: Any) -> dict[str, Any]:
    """The fields of a dataclass of scalars as metrics `prefix` + field; one that is none gives no metric."""
    fields = vars(statistics) if statistics is not None else {}
    return {f"{prefix}{name}": value for name, value in fields.items() if value is not None}


def update_metrics(update: Update, counters: Counters) -> dict[str, float]:
    """All metrics of an update, after which the counters stand as given."""
    experience, collected = update.experience, update.collected
    metrics: dict[str, Scalar | None] = {
        **rollout_metrics(collected.all_rollouts, collected.all_scores),
        **step_metrics(update),
        **named("kl/behaviour_", update.kl),
        **named("kl/reference_", experience.reference),
        **named("kl/teacher_", experience.teacher),
        **named("reward_model/", update.renewal),
        "kl/reference_exact_per_token": experience.reference_exact,
        "kl/beta_reference": update.betas.reference,
        "kl/beta_behaviour": update.betas.behaviour,
        "policy/entropy_coefficient": update.betas.entropy,
        "policy/lr": update.lr,
        "policy/entropy": experience.entropy,
        "advantage/mean": experience.advantage_mean,
        "advantage/std": experience.advantage_std,
        "advantage/zero": experience.advantage_zero,
        "reward/shaped": experience.shaped,
        "rollout/rounds": collected.rounds,
        **named("rollout/sampler_", experience.sampler),
        "correction/mean": experience.correction_mean,
        "correction/bounded": experience.correction_bounded,
        "critic/explained_variance": experience.explained_variance,
        "critic/value_mean": experience.value_mean,
        "progress/sequences": counters.sequences,
        "progress/tokens": counters.tokens,
        "progress/work": counters.work,
        "progress/seconds": counters.seconds,
        "progress/cpu_seconds": counters.cpu_seconds,
        "speed/tokens_per_second": collected.tokens / update.seconds,
        **phase_metrics(update.measured),
    }
    return {name: float(value) for name, value in numbers(metrics).items() if value is not None}


def step_metrics(update: Update) -> dict[str, Scalar]:
    """Means over the steps of actor and critic; of some statistics the largest or the first."""
    actor = over_steps([named("policy/", step.minibatch) | named("policy/", step.step) for step in update.actor])
    critic = over_steps([named("critic/", step.minibatch) | named("critic/", step.step) for step in update.critic])
    metrics: dict[str, Scalar] = {name: values.mean() for name, values in (actor | critic).items()}
    if update.actor:
        metrics["policy/ratio_max"] = actor["policy/ratio_max"].max()
        metrics["policy/first_clip_fraction"] = actor["policy/clip_fraction"][0]
        metrics["policy/first_ratio_error"] = actor["policy/ratio_error"][0]
        del metrics["policy/ratio_error"]
    # a value head on the actor's trunk is a critic all the same
    return {name.replace("policy/value_", "critic/value_"): value for name, value in metrics.items()}


def over_steps(rows: list[dict[str, Scalar]]) -> dict[str, Tensor]:
    """Each statistic of the steps as a vector over the steps."""
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in (rows[0] if rows else ())}


def rollout_metrics(rollout: Rollout, scores: Scores) -> dict[str, Scalar]:
    """Rewards and lengths of a rollout."""
    groups = scores.total.view(-1, rollout.group_size)
    lengths, ranked = rollout.sequences.mask.sum(1).float(), scores.total.sort().values
    return {
        "reward/mean": scores.total.mean(),
        "reward/std": scores.total.std(correction=0),
        **{name: ranked[math.ceil(share * len(ranked)) - 1] for share, name in QUANTILES.items()},
        "reward/exact_match": scores.exact.float().mean(),
        "reward/true": scores.true.mean(),
        "reward/failed": scores.failed.float().mean(),
        "reward/zero_spread_groups": (groups.amax(1) == groups.amin(1)).float().mean(),
        "length/mean": lengths.mean(),
        "length/max": lengths.max(),
        "length/eos_share": rollout.ended.float().mean(),
        **term_metrics(scores.terms),
    }


def term_metrics(terms: dict[str, Tensor]) -> dict[str, Scalar]:
    """Mean and range of each reward function over the completions to which it applies, none where there are none."""
    metrics: dict[str, Scalar] = {}
    for name, term in terms.items():
        if len(scores := term[~term.isnan()]):
            least, most = scores.aminmax()
            named = {"": scores.mean(), "_min": least, "_max": most}
            metrics |= {f"reward/term_{name}{end}": value for end, value in named.items()}
    return metrics


def user_metrics(values: dict[str, float]) -> dict[str, float]:
    """The user's metrics of a rollout."""
    return {f"user/{name}": value for name, value in values.items()}


def heldout_metrics(heldout: HeldOut) -> dict[str, float]:
    """Metrics of an evaluation."""
    single = {name: each for name, each in named("eval/", heldout).items() if not isinstance(each, dict | list)}
    plain = {name: each for name, each in single.items() if not callable(each)}
    plain |= {f"eval/pass_at_{k}": value for k, value in heldout.pass_at.items()}
    plain |= {f"eval/sampled_accuracy_of_{level}": value for level, value in heldout.by_difficulty.items()}
    return plain | {f"eval/{name}": value for name, value in user_metrics(heldout.user).items()}


def pair_metrics(quality: PairQuality) -> dict[str, float]:
    """Quality of a reward model on the held-out pairs of the start."""
    return {
        "reward_model/heldout_pair_accuracy": quality.accuracy,
        "reward_model/heldout_loss": quality.loss,
        "reward_model/calibration_error": quality.calibration_error,
    }


def weight_metrics(weight_bytes: dict[str, int]) -> dict[str, float]:
    """Bytes of weights by role, in MB."""
    return {f"memory/weights_{role}_mb": size / 1e6 for role, size in weight_bytes.items()}


def phase_metrics(measured: Measured) -> dict[str, float]:
    """Seconds and peaks by phase."""
    return {f"time/{phase}": value for phase, value in measured.seconds.items()} | peak_metrics(measured.peaks)


def peak_metrics(peaks: dict[str, Peak]) -> dict[str, float]:
    """Peaks by phase in MB, and the cells that they are made of."""
    sizes: dict[str, int] = {}
    for phase, peak in peaks.items():
        sizes[phase] = peak.allocated
        sizes |= {f"{phase}/{role}_{kind}": size for (role, kind), size in peak.cells.items() if size}
        sizes |= {f"{phase}/remainder": peak.remainder, f"{phase}_reserved": peak.reserved} if peak.reserved else {}
    largest = largest_peak(peaks)
    sizes |= {"peak": largest} if largest else {}
    return {f"memory/{name}_mb": size / 1e6 for name, size in sizes.items()}


def resident_metrics(peak: int | None) -> dict[str, float]:
    """Peak resident memory of the process in MB; none where the system does not report it."""
    return {"memory/rss_mb": peak / 1e6} if peak else {}


def predicted_metrics(peaks: dict[str, Peak]) -> dict[str, float]:
    """Predicted peaks by phase in MB, beside those that are measured."""
    return {f"memory/predicted_{phase}_mb": peak.allocated / 1e6 for phase, peak in peaks.items()}


def predicted_seconds(seconds: dict[str, float], hours: float) -> dict[str, float]:
    """Predicted seconds of an update by phase, and hours of the budget."""
    return {f"time/predicted_{phase}": value for phase, value in seconds.items()} | {"time/predicted_hours": hours}


if __name__ == "__main__":
    print(definitions_table(), end="")
