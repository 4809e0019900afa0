"""The reward model's stage: preference pairs → a trained reward model, made once and kept; and its renewal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bakeoff.algorithm.step import Adam, Subproblem, require_finite
from bakeoff.batch import Example
from bakeoff.config import Config, digest, plain
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.learner.sft import made_once, start_identity
from bakeoff.measure.phase import Phases
from bakeoff.model.critic import separate_critic
from bakeoff.model.load import Policy, complete, encode
from bakeoff.paths import cache
from bakeoff.randomness import derive, generator, stdlib_random
from bakeoff.reward.model import RewardModel, bradley_terry
from bakeoff.reward.preferences import Pair, Preferences, read_pairs
from bakeoff.task import Task

RECIPE = 2  # raise it when this file changes what it makes
BINS = 5  # of the calibration table


@dataclass
class LearnedReward:
    """A reward model, the pairs that it was trained on, and how good it is on held-out ones (`judged`)."""

    model: RewardModel
    pairs: list[Pair]
    report: dict[str, Any]

    def metrics(self) -> dict[str, float]:
        """How good it is, under metric names."""
        names = {"pair_accuracy": "heldout_pair_accuracy", "loss": "heldout_loss"}
        names["calibration_error"] = "calibration_error"
        return {f"reward_model/{metric}": self.report[key] for key, metric in names.items()}


def learned_reward(config: Config, start: Policy, phases: Phases, show: Callable[[str], None]) -> LearnedReward:
    """The reward model of a configuration, trained on the start's completions or a file's.

    Kept under the hash of all that it depends on, so that the runs of a sweep make it once.
    """
    identity = start_identity(config) | {k: plain(config)[k] for k in ("preferences", "rollout")}
    model = untrained(start, config.preferences.seed)

    def make(folder: Path) -> None:
        training, heldout = preference_pairs(config, start, show)
        with phases("reward_model"):
            train(model, start, config.task, training, config.preferences, config.preferences.steps, show)
            normalise(model, start, config.task, training)
        save_file({name: t.detach().clone() for name, t in model.trained().items()}, folder / "model.safetensors")
        (folder / "pairs.json").write_text(json.dumps([asdict(pair) for pair in training]))
        (folder / "report.json").write_text(json.dumps(judged(model, start, config.task, heldout)))

    key = digest({"recipe": RECIPE, **identity})
    folder = made_once(cache() / "reward_models" / key, make)
    saved = load_file(folder / "model.safetensors")
    for name, tensor in model.trained().items():
        tensor.detach().copy_(saved[name])
    pairs = [
        Pair(Example(**row["example"]), row["chosen"], row["rejected"])
        for row in json.loads((folder / "pairs.json").read_text())
    ]
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    show(f"reward model {key}: {report['pair_accuracy']:.3f} of {report['pairs']} held-out pairs, from {folder}")
    return LearnedReward(model, pairs, report)


def untrained(start: Policy, seed: int) -> RewardModel:
    """The start's backbone with a head that prefers nothing, on the start's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = separate_critic(start, head_std=0.0, name="reward_model")
    zero = torch.zeros((), device=start.device)
    return RewardModel(network, zero, zero + 1)


def preference_pairs(config: Config, policy: Policy, show: Callable[[str], None]) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, some of them reversed, and pairs to judge by; raises UserError where there are too few."""
    wanted = config.preferences
    if wanted.path:
        pairs = read_pairs(wanted.path)
        if len(pairs) <= wanted.heldout:
            raise UserError(
                f"preferences.heldout is {wanted.heldout}, but '{wanted.path}' has {len(pairs)} pairs; it must be less."
            )
        training, heldout = pairs[wanted.heldout :], pairs[: wanted.heldout]
    else:
        sampled = ranked_pairs(config, policy, wanted.pairs + wanted.heldout, wanted.seed, "pairs", show)
        training, heldout = sampled[wanted.heldout :], sampled[: wanted.heldout]
    rng = stdlib_random(wanted.seed, "label_noise")
    noisy = [
        Pair(pair.example, pair.rejected, pair.chosen) if rng.random() < wanted.label_noise else pair
        for pair in training
    ]
    return noisy, heldout


def ranked_pairs(
    config: Config, policy: Policy, count: int, seed: int, stream: str, show: Callable[[str], None]
) -> list[Pair]:
    """Pairs of the policy's completions of a prompt, the one with the higher true reward first; no ties."""
    sampler, task = config.rollout, config.task
    pairs: list[Pair] = []
    limit = 20 + 20 * count // sampler.sequences
    for number in range(limit):
        examples = task.training_examples(sampler.prompts, stdlib_random(seed, stream, number))
        prompts = encode(policy, examples, task.shot_examples())
        draws = generator(policy.device, seed, stream, number)
        rollout = sampler(policy, prompts, 2 * max(1, sampler.group_size // 2), task.max_new_tokens, draws)
        texts = rollout.completions
        for index, example in enumerate(rollout.by_completion(rollout.examples)[::2]):
            a, b = texts[2 * index], texts[2 * index + 1]
            first, second = task.grade(a, example), task.grade(b, example)
            if first != second:
                pairs.append(Pair(example, a, b) if first > second else Pair(example, b, a))
        show(f"preference pairs: {min(len(pairs), count)} of {count}")
        if len(pairs) >= count:
            return pairs[:count]
    raise UserError(
        f"preferences.pairs: of {limit * sampler.sequences} completions only {len(pairs)} pairs differ in reward, of "
        f"{count} asked for; ask for fewer, or give the start more room between good and bad."
    )


def pair_scores(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Raw scores of the chosen and of the rejected completions, [N] each; carry gradient."""
    examples = [pair.example for pair in pairs for _ in range(2)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    sequences = complete(policy, examples, texts, task.shot_examples())
    sequences.group_size = 2
    chosen, rejected = model.raw(sequences).view(-1, 2).unbind(1)
    return chosen, rejected


def train(
    model: RewardModel,
    policy: Policy,
    task: Task,
    pairs: list[Pair],
    spec: Preferences,
    steps: int,
    show: Callable[[str], None],
) -> None:
    """AdamW on the Bradley–Terry loss of batches drawn from the pairs."""
    adam = Adam(lr=spec.lr)
    optimizer = adam.optimizer(model.network.trained().values())
    for step in range(steps):
        batch = stdlib_random(spec.seed, "reward_model", step).choices(pairs, k=spec.batch)
        chosen, rejected = pair_scores(model, policy, task, batch)
        loss = bradley_terry(chosen, rejected)
        loss.backward()
        adam(Subproblem(optimizer))
        if step % 10 == 0 or step + 1 == steps:
            right = (chosen > rejected).float().mean().item()
            show(f"reward model: step {step + 1}/{steps}, loss {loss.item():.3f}, {right:.0%} of pairs")


@torch.no_grad()
def normalise(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> None:
    """Sets mean and deviation so that the scores of the pairs' completions have 0 and 1.

    Raises Diverged where a score is not finite.
    """
    parts = [pair_scores(model, policy, task, pairs[at : at + 256]) for at in range(0, len(pairs), 256)]
    scores = torch.cat([torch.cat(part) for part in parts])
    require_finite(scores, "a score of the reward model")
    model.mean.copy_(scores.mean())
    model.std.copy_(scores.std().clamp(min=1e-6))


@torch.no_grad()
def judged(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> dict[str, Any]:
    """Accuracy, loss and calibration on held-out pairs.

    Calibration: pairs in bins of the probability that the model gives to the completion that it prefers, with the
    share in which that is the better one. `calibration_error` is the mean distance of the two, weighted by pairs.
    """
    parts = [pair_scores(model, policy, task, pairs[at : at + 256]) for at in range(0, len(pairs), 256)]
    margin = torch.cat([chosen - rejected for chosen, rejected in parts]).to(HOST)
    confidence, right = torch.sigmoid(margin.abs()), (margin > 0).float() + 0.5 * (margin == 0).float()
    bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    rows = [
        {
            "from": 0.5 + 0.5 * index / BINS,
            "to": 0.5 + 0.5 * (index + 1) / BINS,
            "pairs": int((bins == index).sum()),
            "said": float(confidence[bins == index].mean()),
            "right": float(right[bins == index].mean()),
        }
        for index in range(BINS)
        if (bins == index).any()
    ]
    return {
        "pairs": len(pairs),
        "pair_accuracy": float(right.mean()),
        "loss": float(bradley_terry(margin, torch.zeros_like(margin))),
        "calibration_error": sum(row["pairs"] * abs(row["said"] - row["right"]) for row in rows) / len(pairs),
        "calibration": rows,
    }


def renew(
    model: RewardModel, config: Config, actor: Policy, earlier: list[Pair], update: int, show: Callable[[str], None]
) -> dict[str, float]:
    """Goes on training with pairs of the actor's own completions and a share of earlier ones: DeepSeekMath §4.1.4.

    Returns its accuracy on the new pairs before and after, under metric names.
    """
    spec = config.preferences
    pairs = ranked_pairs(config, actor, spec.renewal_pairs, derive(config.seed, "renewal"), f"renewal{update}", show)
    before = judged(model, actor, config.task, pairs)["pair_accuracy"]
    replayed = round(spec.replay / (1 - spec.replay) * len(pairs))
    replay = stdlib_random(config.seed, "replay", update).choices(earlier, k=replayed) if replayed else []
    train(model, actor, config.task, pairs + replay, spec, spec.renewal_steps, show)
    normalise(model, actor, config.task, pairs)
    after = judged(model, actor, config.task, pairs)["pair_accuracy"]
    return {"reward_model/new_pair_accuracy": before, "reward_model/new_pair_accuracy_after": after}
