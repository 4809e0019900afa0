"""Statistics of a rollout and its scores, the same for every method; and the table of all metrics."""

from __future__ import annotations

from bakeoff.batch import Rollout, Scores, numbers
from bakeoff.measure import TRAINING
from bakeoff.measure.phase import Measured, Peak

# name → (unit, definition). `*` stands for a phase or a reward function. docs/metrics.md is written from this.
METRICS: dict[str, tuple[str, str]] = {
    "reward/mean": ("score", "mean total reward of the rollout's completions, before any KL"),
    "reward/std": ("score", "standard deviation of the total reward over the rollout"),
    "reward/exact_match": ("share", "completions to which the task's verifier gives full marks"),
    "reward/true": (
        "score",
        "mean true reward: the task's own grade in [0, 1], whatever the method is trained on",
    ),
    "reward/zero_spread_groups": ("share", "groups in which all completions have the same reward"),
    "reward/term_*": ("score", "mean of one reward function, unweighted"),
    "length/mean": ("tokens", "mean completion length, EOS included"),
    "length/max": ("tokens", "longest completion of the rollout"),
    "length/eos_share": ("share", "completions that end with EOS within the budget"),
    "rollout/rounds": ("–", "how often prompts were drawn for this update; 1 unless the method samples dynamically"),
    "rollout/sampler_mismatch": (
        "nats",
        "mean absolute difference of log π, sampler against training forward (bfloat16)",
    ),
    "policy/entropy": ("nats/token", "mean entropy of π_old over the vocabulary, at the sampling temperature"),
    "policy/loss": ("–", "loss that the actor minimises, mean over minibatches"),
    "policy/ratio_mean": ("–", "mean ratio, over minibatches"),
    "policy/ratio_max": ("–", "largest ratio of the update"),
    "policy/effective_sample_size": (
        "share",
        "(Σ ratio)²/(n·Σ ratio²) over tokens, mean over minibatches: how much of the samples reuse leaves",
    ),
    "policy/clip_fraction": ("share", "tokens whose surrogate is flat because of the clip, mean over minibatches"),
    "policy/first_ratio_error": (
        "–",
        "largest distance of the ratio from one in a rollout's first minibatch; 0",
    ),
    "policy/first_clip_fraction": ("share", "clip fraction of a rollout's first minibatch; 0"),
    "policy/gradient_norm": ("–", "norm of the actor's gradient before clipping, mean over minibatches"),
    "policy/cg_residual": ("–", "TRPO: ‖g − F·x‖/‖g‖ after the conjugate gradient"),
    "policy/step_norm": ("–", "TRPO: norm of the step taken; 0 where none was accepted"),
    "policy/backtracks": ("–", "TRPO: how often the step was shortened"),
    "policy/accepted": ("share", "TRPO: whether a step was accepted"),
    "policy/predicted_improvement": ("–", "TRPO: g·x for the full step, what the surrogate should gain"),
    "policy/actual_improvement": ("–", "TRPO: what the surrogate gained by the step taken"),
    "policy/step_kl": ("nats/token", "TRPO: mean KL(π_old‖π_θ), by k3, after the step taken"),
    "policy/lr": ("–", "learning rate of the actor"),
    "advantage/mean": ("–", "mean advantage over tokens, after scaling"),
    "advantage/std": ("–", "standard deviation of the advantage over tokens, after scaling"),
    "advantage/correlation": (
        "–",
        "mode=advantage_quality: correlation of unscaled advantages with the truth, all tokens",
    ),
    "advantage/correlation_ceiling": ("–", "what it would be for the true advantages: the truth is a mean of samples"),
    "advantage/bias": ("score", "mean of unscaled advantage less truth"),
    "advantage/rank_accuracy": (
        "share",
        "pairs of tokens at one position of one prompt that the advantages order as the truth does; ½ is chance",
    ),
    "advantage/*_by_position": ("–", "the same at one position of the completion, which is the step, from 0"),
    "gradient/cosine": ("–", "mode=gradient_quality: mean cosine of a rollout's gradient with the policy gradient"),
    "gradient/alignment": ("–", "cosine of the mean gradient with the policy gradient, less what noise takes off"),
    "gradient/bias": ("–", "sine of that angle: what stays wrong with any number of samples"),
    "gradient/relative_variance": ("–", "trace of the gradient's covariance over the square of its mean's norm"),
    "gradient/snr": ("–", "its inverse: signal to noise of one rollout"),
    "gradient/snr_per_1000_tokens": ("–", "of a rollout of 1000 completion tokens"),
    "gradient/snr_per_second": ("–", "of a second of sampling, scoring and differentiating; no critic's training"),
    "gradient/norm": ("–", "norm of the mean gradient, less what noise adds"),
    "gradient/tokens": ("tokens", "completion tokens of a rollout"),
    "gradient/seconds": ("s", "seconds of a rollout, its scores, its experience and its gradient"),
    "critic/value_loss": ("score²", "½·(V − R)², mean over minibatches"),
    "critic/explained_variance": ("–", "1 − Var(R − V)/Var(R) at the rollout, before the update"),
    "critic/value_mean": ("score", "mean value at the rollout"),
    "critic/gradient_norm": ("–", "norm of the critic's gradient before clipping, mean over minibatches"),
    "reward_model/new_pair_accuracy": (
        "share",
        "pairs of the policy's own completions that the reward model ranks right, when an outer iteration ends",
    ),
    "reward_model/new_pair_accuracy_after": ("share", "the same pairs after it went on learning from them"),
    "reward_model/heldout_pair_accuracy": ("share", "held-out pairs of the start that the reward model ranks right"),
    "reward_model/heldout_loss": ("nats", "Bradley–Terry loss on these pairs"),
    "reward_model/calibration_error": ("share", "mean distance of stated and observed accuracy on these pairs"),
    "kl/reference_exact_per_token": (
        "nats/token",
        "exact KL(π_old‖π_ref), where π_old's logits are in hand",
    ),
    "kl/reference_k*_per_token": ("nats/token", "estimator k1, k2 or k3 of KL(π_old‖π_ref), mean over tokens"),
    "kl/reference_k*_per_sequence": ("nats/sequence", "the same, summed over each sequence, mean over sequences"),
    "kl/behaviour_k*_per_token": (
        "nats/token",
        "estimator k1, k2 or k3 of KL(π_old‖π_θ) after the update, over measure.kl_sequences",
    ),
    "kl/behaviour_k*_per_sequence": ("nats/sequence", "the same, summed over each sequence, mean over sequences"),
    "kl/beta_reference": ("–", "coefficient of the KL to the reference in this update"),
    "kl/beta_behaviour": ("–", "coefficient of the KL to the behaviour policy in this update"),
    "eval/greedy_accuracy": ("share", "exact match on the held-out prompts, greedy decoding"),
    "eval/sampled_accuracy": ("share", "exact match on the held-out prompts, sampled as in training"),
    "eval/greedy_length": ("tokens", "mean completion length of greedy decoding, EOS included"),
    "progress/sequences": ("sequences", "completions sampled for training so far"),
    "progress/tokens": ("tokens", "completion tokens sampled for training so far"),
    "progress/seconds": ("s", "time in the phases rollout, reward, experience and update so far"),
    "speed/tokens_per_second": ("tokens/s", "completion tokens of this step over its training time"),
    "time/*": ("s", "time in one phase of this step"),
    "memory/weights_*_mb": ("MB", "parameters that a role adds (actor, reference, critic, reward_model), 10⁶ bytes"),
    "memory/peak_mb": ("MB", "the largest peak of the phases of training, 10⁶ bytes"),
    "memory/rss_mb": ("MB", "CPU: peak resident memory of the whole process since the last update, Python included"),
    "memory/predicted_*_mb": ("MB", "with measure.memory_prediction: the peak that was predicted for a phase"),
    "memory/*_reserved_mb": ("MB", "CUDA: what the allocator held from the device at most in a phase"),
    "memory/*_mb": (
        "MB",
        "peak of a phase (CUDA: of the allocator; CPU: of live tensor bytes); `memory/PHASE/ROLE_KIND_mb`: what a role "
        "holds of a kind at that peak; `memory/PHASE/remainder_mb`: what the allocator counts and no tensor explains",
    ),
}


def metrics_table() -> str:
    """docs/metrics.md."""
    head = """# Metrics

Every run logs these, under these names, once an update (`eval/*` where it evaluates). `*` stands for a phase or a
reward function; `critic/*` exists where there is a critic. `make docs` writes this page from `measure/statistics.py`.

| metric | unit | what it is |
|---|---|---|
"""
    return head + "".join(f"| `{name}` | {unit} | {text} |\n" for name, (unit, text) in METRICS.items())


def rollout_statistics(rollout: Rollout, scores: Scores) -> dict[str, float]:
    """Rewards and lengths of a rollout under their metric names."""
    groups = scores.total.view(-1, rollout.group_size)
    lengths = rollout.sequences.mask.sum(1).float()
    statistics = {
        "reward/mean": scores.total.mean(),
        "reward/std": scores.total.std(correction=0),
        "reward/exact_match": scores.exact.float().mean(),
        "reward/true": scores.true.mean(),
        "reward/zero_spread_groups": (groups.amax(1) == groups.amin(1)).float().mean(),
        "length/mean": lengths.mean(),
        "length/max": lengths.max(),
        "length/eos_share": rollout.ended.float().mean(),
    }
    statistics |= {f"reward/term_{name}": term.mean() for name, term in scores.terms.items()}
    return numbers(statistics)


def weight_megabytes(weight_bytes: dict[str, int]) -> dict[str, float]:
    """Bytes of weights by role as metrics in MB."""
    return {f"memory/weights_{role}_mb": size / 1e6 for role, size in weight_bytes.items()}


def phase_metrics(measured: Measured) -> dict[str, float]:
    """Seconds and peaks by phase as metrics."""
    return {f"time/{phase}": value for phase, value in measured.seconds.items()} | peak_megabytes(measured.peaks)


def peak_megabytes(peaks: dict[str, Peak]) -> dict[str, float]:
    """Peaks by phase as metrics in MB, and the cells that they are made of."""
    sizes: dict[str, int] = {}
    for phase, peak in peaks.items():
        sizes[phase] = peak.allocated
        sizes |= {f"{phase}/{role}_{kind}": size for (role, kind), size in peak.cells.items() if size}
        sizes |= {f"{phase}/remainder": peak.remainder, f"{phase}_reserved": peak.reserved} if peak.reserved else {}
    training = [peak.allocated for phase, peak in peaks.items() if phase in TRAINING]
    sizes |= {"peak": max(training)} if training else {}
    return {f"memory/{name}_mb": size / 1e6 for name, size in sizes.items()}


if __name__ == "__main__":
    print(metrics_table(), end="")
