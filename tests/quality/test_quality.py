"""Quality of gradients and advantages, on known distributions and against exact values of a policy."""

import math
from dataclasses import replace

import pytest
import torch

from bakeoff.engine.embedded import Embedded
from bakeoff.loop import collect
from bakeoff.quality import train_critic, with_stream
from bakeoff.quality.advantage import advantage_quality, compared, rank_accuracy, true_advantages
from bakeoff.quality.gradient import Moments, gradient_quality, quality
from bakeoff.task.sort import Sort
from tests.conftest import compose, loop_of

SMALL = [
    *("tuned=none", "batch.prompts=4", "batch.group_size=2", "sft.steps=0", "task.heldout=4"),
    *("task.digits=3", "task.max_new_tokens=4", "++model.architecture.num_hidden_layers=1"),
]
FEW = ["quality.critic_updates=2", "quality.batches=3", "quality.reference_batches=4", "quality.continuations=3"]


def moments_of(gradients):
    moments = Moments()
    for gradient in gradients:
        moments.add(gradient)
    return moments


def test_moments_correct_the_norm_of_a_mean_for_its_noise():
    """The vectors (1, 0), (3, 0) and (2, 3) have the mean (2, 1) and squared deviations of 2, 2 and 4."""
    moments = moments_of([torch.tensor([1.0, 0.0]), torch.tensor([3.0, 0.0]), torch.tensor([2.0, 3.0])])
    assert moments.mean.tolist() == [2, 1]
    assert moments.variance == pytest.approx(4)
    assert moments.signal == pytest.approx(5 - 4 / 3)


def test_bias_and_signal_to_noise_are_those_of_known_gaussians():
    """Gradients around 3·(cos φ, sin φ, 0, …), a truth along the first axis, unit noise in each of 50 dimensions."""
    draws = torch.Generator().manual_seed(1)
    angle = math.pi / 3
    mine, truth = torch.zeros(50), torch.zeros(50)
    mine[0], mine[1], truth[0] = 3 * math.cos(angle), 3 * math.sin(angle), 2.0

    def around(mean, count):
        return moments_of(mean + torch.randn(50, generator=draws) for _ in range(count))

    found = quality(around(mine, 4000), around(truth, 4000), [0.5, 0.7], tokens=100, seconds=2)
    assert found.alignment == pytest.approx(math.cos(angle), abs=0.03)
    assert found.bias == pytest.approx(math.sin(angle), abs=0.03)
    assert found.snr == pytest.approx(9 / 50, rel=0.05)
    assert found.relative_variance == pytest.approx(50 / 9, rel=0.05)
    assert found.norm == pytest.approx(3, rel=0.03)
    assert found.cosine == pytest.approx(0.6)


def by_first_token(self, completion, example):
    """A score that differs between completions of a random policy."""
    return float(completion[:1] in ("1", "2", "3", "+"))


def test_an_unbiased_method_is_aligned_and_its_scale_changes_no_quality(monkeypatch):
    monkeypatch.setattr(Sort, "verify", by_first_token)
    found = {}
    for name, algorithm in (("rloo", "rloo"), ("grpo", "dr_grpo")):
        config = compose(*SMALL, f"algorithm={algorithm}", "quality.batches=40", "quality.reference_batches=80")
        loop = loop_of(config)
        before = [p.detach().clone() for p in loop.learner.actor.parameters()]
        found[name] = gradient_quality(loop, config.quality, lambda message: None)
        assert all(torch.equal(a, b) for a, b in zip(before, loop.learner.actor.parameters(), strict=True))
    assert found["rloo"].alignment == pytest.approx(1, abs=0.3)
    # all completions have the budget's length here, so with groups of two Dr. GRPO is RLOO times a factor
    for name in ("cosine", "alignment", "snr"):
        assert getattr(found["grpo"], name) == pytest.approx(getattr(found["rloo"], name), rel=1e-3)
    assert found["grpo"].norm < found["rloo"].norm
    assert found["rloo"].snr_per_second > 0


def exact_values(policy, prompt, score):
    """V before the first token, and V after each first token [V], of completions of at most two tokens."""

    def distribution(ids):
        with torch.no_grad():
            return policy.network(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)

    def text(ids):
        return policy.tokenizer.decode([i for i in ids if i not in policy.eos_ids], skip_special_tokens=True)

    ends = policy.eos_ids
    first = distribution(prompt)
    after = []
    for token in range(len(first)):
        if token in ends:
            after.append(score(text([token])))
        else:
            second = distribution([*prompt, token])
            after.append(sum(float(p) * score(text([token, other])) for other, p in enumerate(second)))
    return float(first @ torch.tensor(after, dtype=torch.float64)), after


def test_the_estimated_truth_is_that_of_exact_enumeration(monkeypatch):
    """Completions have at most two tokens; every continuation of a state is weighted by its probability."""
    score = lambda text: float("1" in text) + 0.5 * float("2" in text)  # noqa: E731
    monkeypatch.setattr(Sort, "verify", lambda self, completion, example: score(completion))
    config = compose(*SMALL, "algorithm=rloo", "task.digits=1", "task.max_new_tokens=2", "quality.continuations=4000")
    loop = loop_of(config)
    collected = collect(loop, 0)
    found = true_advantages(loop, collected.rollout, collected.scores, config.quality.continuations, "truth")
    sequences = collected.rollout.sequences
    for row in range(len(sequences)):
        prompt = sequences.ids[row, : sequences.prompt_width][sequences.attention[row, : sequences.prompt_width]]
        start, after = exact_values(loop.learner.actor, prompt.tolist(), score)
        reached = after[int(sequences.completion_ids[row, 0])]
        noise = 4 * 0.5 / 4000**0.5
        assert float(found[row, 0]) == pytest.approx(reached - start, abs=2 * noise)
        if sequences.mask[row, 1]:
            assert float(found[row, 1]) == pytest.approx(float(collected.scores.total[row]) - reached, abs=noise)


def test_true_advantages_have_full_correlation_and_constant_ones_rank_at_chance():
    """One prompt, two completions of two tokens; the two estimates of the truth agree."""
    truth = torch.tensor([[0.5, -0.5], [0.1, 0.3]])
    mask = torch.tensor([[True, True], [True, True]])
    found = compared(truth + 0.25, [truth, truth], mask, 2)
    assert found.correlation == pytest.approx(1)
    assert found.correlation_ceiling == pytest.approx(1)
    assert found.bias == pytest.approx(0.25)
    assert found.rank_accuracy == 1
    constant = torch.ones(2, 2)
    assert compared(constant, [truth, truth], mask, 2).correlation == 0
    assert rank_accuracy(constant, truth, mask, 2) == 0.5, "equal advantages rank at chance"
    assert rank_accuracy(torch.tensor([[1.0, 9.0], [0.0, 1.0]]), truth, mask, 2) == 0.5, "one pair right, one wrong"
    near = torch.tensor([[0.5, 0.0], [0.45, 0.05]])
    assert math.isnan(rank_accuracy(constant, near, mask, 2)), "no pair differs enough to be ranked"


def test_training_the_critic_leaves_the_policy_unchanged(monkeypatch):
    monkeypatch.setattr(Sort, "verify", by_first_token)
    config = compose(*SMALL, *FEW, "algorithm=ppo", "algorithm.critic.optimizer.lr=1e-2")
    loop = loop_of(config)
    learner = loop.learner
    before = [p.detach().clone() for p in learner.actor.parameters()]
    head = learner.critic.head.linear.weight.detach().clone()
    train_critic(loop, config.quality.critic_updates)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.actor.parameters(), strict=True))
    assert not torch.equal(head, learner.critic.head.linear.weight)
    assert learner.counters.updates == 0, "training the critic is not an update"


def test_advantages_are_compared_at_every_position(monkeypatch):
    monkeypatch.setattr(Sort, "verify", by_first_token)
    config = compose(*SMALL, *FEW, "algorithm=ppo")
    overall, positions = advantage_quality(loop_of(config), config.quality, lambda message: None)
    assert -1 <= overall.correlation <= 1
    assert set(positions) == set(range(config.task.max_new_tokens)), "random completions use their budget"


def test_advantages_of_a_learned_reward_are_measured():
    learned = ["reward=learned", "preferences.pairs=24", "preferences.heldout=8", "preferences.steps=3"]
    config = compose(*SMALL, *FEW, *learned, "batch.prompts=8", "batch.group_size=4")
    overall, _ = advantage_quality(loop_of(config), config.quality, lambda message: None)
    assert -1 <= overall.correlation <= 1


class Rests(Embedded):
    """An engine that generates nothing between a rest and the next load, as one that frees its weights."""

    awake = False

    def load(self, policy):
        self.awake = True
        return super().load(policy)

    def rest(self):
        self.awake = False

    def generate(self, request):
        assert self.awake, "it generates while it rests"
        return super().generate(request)


def test_an_engine_that_rests_is_loaded_before_it_generates(monkeypatch):
    config = compose(*SMALL, *FEW, "algorithm=ppo")
    loop = loop_of(config)
    loop = replace(loop, collector=replace(loop.collector, engine=Rests()))
    advantage_quality(loop, config.quality, lambda message: None)
    gradient_quality(loop, config.quality, lambda message: None)


def test_the_noise_of_a_score_is_that_of_the_seed_and_the_rollout():
    def noise(seed, number, before):
        loop = loop_of(compose(*SMALL, "reward.distortion.noise=1.0", f"seed={seed}"))
        torch.manual_seed(before)
        return collect(with_stream(loop, "gradient"), number).scores.total

    first = noise(seed=1, number=0, before=0)
    assert torch.equal(first, noise(seed=1, number=0, before=9))
    assert not torch.equal(first, noise(seed=1, number=1, before=0))
    assert not torch.equal(first, noise(seed=2, number=0, before=0))
