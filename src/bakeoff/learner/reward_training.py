"""The stage of the reward model: preference pairs → a trained reward model, cached; and its renewal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bakeoff import processes
from bakeoff.algorithm.divergence import require_finite
from bakeoff.algorithm.optimizer import Adam, Subproblem
from bakeoff.batch import Example
from bakeoff.collector import Collector
from bakeoff.config import Config
from bakeoff.device import HOST
from bakeoff.errors import UserError
from bakeoff.identity import by_content, digest, plain, sampler_identity
from bakeoff.learner.sft import Report, made_once, start_identity
from bakeoff.measure.phase import Phases
from bakeoff.model.encode import encode_with_completions
from bakeoff.model.policy import Policy
from bakeoff.model.value import separate_model
from bakeoff.paths import cache
from bakeoff.randomness import derive, stdlib_random
from bakeoff.reward.model import RewardModel, bradley_terry
from bakeoff.reward.preferences import Pair, Preferences, split
from bakeoff.task.task import Task

RECIPE = 3  # raise it when a change of this file changes its results
BINS = 5  # of the calibration table


@dataclass
class PairQuality:
    """How well a reward model ranks pairs.

    pairs               number of pairs
    accuracy            share of pairs that it ranks right; equal scores count one half
    loss                mean Bradley–Terry loss in nats
    calibration_error   mean distance of stated and observed accuracy over the bins, weighted by pairs
    calibration         one row per bin of stated accuracy: from, to, pairs, stated, observed
    """

    pairs: int
    accuracy: float
    loss: float
    calibration_error: float
    calibration: list[dict[str, float]]


@dataclass
class Renewal:
    """Accuracy of a reward model on pairs of the current policy, before and after it was trained on them."""

    new_pair_accuracy: float
    new_pair_accuracy_after: float


@dataclass
class LearnedReward:
    """A reward model, the pairs that it was trained on, and its quality on held-out pairs."""

    model: RewardModel
    pairs: list[Pair]
    quality: PairQuality


def learned_reward(
    config: Config, collector: Collector, start: Policy, phases: Phases, report: Report
) -> LearnedReward:
    """The reward model of a configuration, trained on pairs of the start's completions or of a file.

    It is cached under the hash of everything that it depends on, so that the runs of a sweep train it once.
    """
    wanted, model = config.preferences, untrained(start, config.preferences.seed)
    values = by_content(plain(config))
    identity = {key: values[key] for key in ("preferences", "batch", "sampling")}
    identity["engine"] = sampler_identity(config, values)

    def make(folder: Path) -> None:
        training, heldout = preference_pairs(wanted, collector, start, report)
        with phases("reward_model"):
            train(model, start, config.task, training, wanted, wanted.steps, report)
            normalise(model, start, config.task, training)
        save_file({name: t.detach().clone() for name, t in model.trained().items()}, folder / "model.safetensors")
        (folder / "pairs.json").write_text(json.dumps([asdict(pair) for pair in training]))
        quality = pair_quality(model, start, config.task, heldout)
        (folder / "quality.json").write_text(json.dumps(asdict(quality)))

    key = digest({"recipe": RECIPE, **start_identity(config), **identity})
    folder = made_once(cache() / "reward_models" / key, make, report)
    saved = load_file(folder / "model.safetensors")
    for name, tensor in model.trained().items():
        tensor.detach().copy_(saved[name])
    rows = json.loads((folder / "pairs.json").read_text())
    pairs = [Pair(Example(**row["example"]), row["chosen"], row["rejected"]) for row in rows]
    quality = PairQuality(**json.loads((folder / "quality.json").read_text()))
    report(f"reward model {key} from {folder}: ranks {quality.accuracy:.3f} of {quality.pairs} held-out pairs right")
    return LearnedReward(model, pairs, quality)


def untrained(start: Policy, seed: int) -> RewardModel:
    """The start's backbone with a head that prefers nothing, on the start's device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = separate_model(start, head_std=0.0, name="reward_model")
    zero = torch.zeros((), device=start.device)
    return RewardModel(network, zero, zero + 1)


def preference_pairs(
    wanted: Preferences, collector: Collector, policy: Policy, report: Report
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on, some of them reversed, and held-out pairs; raises UserError where there are too few."""
    pairs = wanted.file_pairs
    if not pairs:
        source = replace(collector, seed=wanted.seed)
        pairs = ranked_pairs(source, policy, wanted.pairs + wanted.heldout, "pairs", report)
    training, heldout = split(pairs, wanted.heldout, collector.task)
    rng = stdlib_random(wanted.seed, "label_noise")
    training = [
        Pair(pair.example, pair.rejected, pair.chosen) if rng.random() < wanted.label_noise else pair
        for pair in training
    ]
    return training, heldout


def ranked_pairs(collector: Collector, policy: Policy, count: int, stream: str, report: Report) -> list[Pair]:
    """`count` pairs of the policy's completions of one prompt, the one with the higher true reward first; no ties."""
    task, batch = collector.task, collector.batch
    collector.engine.load(policy)
    pairs: list[Pair] = []
    completions = 2 * max(1, batch.group_size // 2)  # of a prompt, compared by twos
    limit = 20 + 20 * count // batch.sequences
    for number in range(limit):
        examples = task.training_examples(batch.prompts, stdlib_random(collector.seed, stream, number))
        prompts = collector.prompts(policy, examples)
        rollout = collector.roll_out(policy, prompts, completions, stream, number)
        texts = rollout.completions
        verdicts = collector.judge(rollout)
        for row in range(0, len(texts), 2):
            example, a, b = rollout.examples[row], texts[row], texts[row + 1]
            first, second = verdicts[row].grade, verdicts[row + 1].grade
            if first != second:
                pairs.append(Pair(example, a, b) if first > second else Pair(example, b, a))
        report(f"preference pairs: {min(len(pairs), count)} of {count}")
        if len(pairs) >= count:
            return pairs[:count]
    raise UserError(
        f"preferences.pairs: of {limit * batch.prompts * completions} completions only {len(pairs)} pairs differ in "
        f"reward, but {count} are asked for; lower preferences.pairs, or choose a start whose completions differ more."
    )


def pair_scores(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
    """Raw scores of the chosen and of the rejected completions, [N] each; they carry gradient."""
    examples = [pair.example for pair in pairs for _ in range(2)]
    texts = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    sequences = replace(encode_with_completions(policy, examples, texts, task.shot_examples()), group_size=2)
    chosen, rejected = model.raw(sequences).view(-1, 2).unbind(1)
    return chosen, rejected


def scores_in_parts(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> list[tuple[Tensor, Tensor]]:
    """`pair_scores` of 256 pairs at a time."""
    return [pair_scores(model, policy, task, pairs[at : at + 256]) for at in range(0, len(pairs), 256)]


def train(
    model: RewardModel, policy: Policy, task: Task, pairs: list[Pair], spec: Preferences, steps: int, report: Report
) -> None:
    """AdamW on the Bradley–Terry loss of batches drawn from the pairs."""
    adam = Adam(lr=spec.lr)
    optimizer = adam.create(model.network.trained().values())
    for step in range(steps):
        batch = stdlib_random(spec.seed, "reward_model", step).choices(pairs, k=spec.batch)
        chosen, rejected = pair_scores(model, policy, task, batch)
        loss = bradley_terry(chosen, rejected)
        loss.backward()
        adam(Subproblem(optimizer))
        if step % 10 == 0 or step + 1 == steps:
            right = (chosen > rejected).float().mean().item()
            report(f"reward model: step {step + 1}/{steps}, loss {loss.item():.3f}, {right:.0%} of pairs")


@torch.no_grad()
def normalise(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> None:
    """Sets mean and deviation so that the scores of the pairs' completions have 0 and 1.

    Raises Diverged where a score is not finite.
    """
    scores = torch.cat([torch.cat(part) for part in scores_in_parts(model, policy, task, pairs)])
    require_finite(scores, "a score of the reward model")
    model.mean.copy_(scores.mean())
    model.std.copy_(scores.std().clamp(min=1e-6))


@torch.no_grad()
def pair_quality(model: RewardModel, policy: Policy, task: Task, pairs: list[Pair]) -> PairQuality:
    """Accuracy, loss and calibration on pairs.

    A bin holds the pairs for which the model gives its preferred completion a probability in the bin's range: the
    stated accuracy. The observed accuracy is the share in which that completion is the better one.
    """
    parts = scores_in_parts(model, policy, task, pairs)
    margin = torch.cat([chosen - rejected for chosen, rejected in parts]).to(HOST)
    confidence, right = torch.sigmoid(margin.abs()), (margin > 0).float() + 0.5 * (margin == 0).float()
    bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    rows = [
        {
            "from": 0.5 + 0.5 * index / BINS,
            "to": 0.5 + 0.5 * (index + 1) / BINS,
            "pairs": int((bins == index).sum()),
            "stated": float(confidence[bins == index].mean()),
            "observed": float(right[bins == index].mean()),
        }
        for index in range(BINS)
        if (bins == index).any()
    ]
    return PairQuality(
        pairs=len(pairs),
        accuracy=float(right.mean()),
        loss=float(bradley_terry(margin, torch.zeros_like(margin))),
        calibration_error=sum(row["pairs"] * abs(row["stated"] - row["observed"]) for row in rows) / len(pairs),
        calibration=rows,
    )


def renew_reward_model(
    learned: LearnedReward, wanted: Preferences, collector: Collector, report: Report, actor: Policy, update: int
) -> Renewal:
    """Trains further on pairs of the actor's own completions and a share of earlier ones: DeepSeekMath §4.1.4."""
    model, seed, task = learned.model, collector.seed, collector.task
    source = replace(collector, seed=derive(seed, "renewal"))
    pairs = ranked_pairs(source, actor, wanted.renewal_pairs, f"renewal{update}", report)

    def renewed() -> Renewal:
        before = pair_quality(model, actor, task, pairs).accuracy
        replayed = round(wanted.replay / (1 - wanted.replay) * len(pairs))
        replay = stdlib_random(seed, "replay", update).choices(learned.pairs, k=replayed) if replayed else []
        train(model, actor, task, pairs + replay, wanted, wanted.renewal_steps, report)
        normalise(model, actor, task, pairs)
        return Renewal(before, pair_quality(model, actor, task, pairs).accuracy)

    renewal = processes.led(renewed)
    processes.send(model.trained().values())
    return renewal
