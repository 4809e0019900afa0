"""On-policy distillation: another checkpoint is the reference, and −k1 to it the whole reward."""

import re

import pytest
import torch

from bakeoff.algorithm.loss import place_scores, with_kl_reward
from bakeoff.errors import UserError
from bakeoff.identity import config_id
from bakeoff.learner.holdings import weight_bytes
from bakeoff.model.build import build
from bakeoff.model.weights import save, weights_hash
from bakeoff.predict import predict
from tests.conftest import compose, loop_of, update_of

SMALL = [
    *("algorithm=importance_sampling", "algorithm/baseline=none", "algorithm/advantage=token_reward", "tuned=none"),
    *("sft.steps=0", "task.digits=2", "task.max_new_tokens=4", "task.heldout=4"),
    *("batch.prompts=8", "batch.group_size=4", "++model.architecture.num_hidden_layers=1"),
]
DISTILLATION = "algorithm/kl_to_reference=distillation"


@pytest.fixture
def teacher(tmp_path):
    """A larger model with the policy's tokenizer, whose distributions are far from uniform."""
    policy = build(compose("model.architecture.hidden_size=96").model, seed=9)
    with torch.no_grad():
        policy.head.weight.mul_(20)
    save(policy, tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.lora.rank=2"],
        ["model.precision=bfloat16_weights"],
        ["algorithm=ppo", "algorithm.advantage.gamma=0"],
    ],
    ids=" ".join,
)
def test_distillation_brings_the_policy_to_its_teacher(teacher, overrides):
    rest = SMALL[3:] if "algorithm=ppo" in overrides else SMALL
    learning = ["algorithm.optimizer.lr=3e-3", "algorithm.optimizer.epochs=1"]
    config = compose(*learning, *rest, DISTILLATION, f"algorithm.kl_to_reference.name={teacher}", *overrides)
    loop = loop_of(config)
    reference = loop.learner.reference
    before, kls = weights_hash(reference.network), []
    for _ in range(10):
        kls.append(update_of(loop)["kl/teacher_k1_per_token"])
    if not config.model.lora.rank:  # an adapter does not reach a head of random weights, which stay small
        assert kls[-1] < 0.8 * kls[0]
    assert kls[-1] != kls[0]
    assert weights_hash(reference.network) == before
    sizes = weight_bytes(loop.learner)
    assert sizes["reference"] > 1.5 * sizes["actor"]
    assert predict(config).weight_bytes == sizes


def test_the_reward_of_distillation_is_minus_k1_and_no_score():
    algorithm = compose(*SMALL, DISTILLATION, "algorithm.kl_to_reference.name=somewhere").algorithm
    mask = torch.tensor([[True, True], [True, False]])
    rewards = place_scores(torch.tensor([1.0, 5.0]), mask, 1)
    old, ref = torch.tensor([[-1.0, -2.0], [-3.0, 9.0]]), torch.tensor([[-1.5, -1.0], [-1.0, 7.0]])
    rewards = with_kl_reward(algorithm, rewards, algorithm.kl_to_reference.beta, old, ref)
    assert rewards.tokens.tolist() == [[-0.5, 1.0], [2.0, 0.0]]
    advantages, _ = algorithm.advantage(rewards.tokens, None, mask)
    assert torch.equal(advantages, rewards.tokens), "each token answers for its own"


def test_a_teacher_with_another_vocabulary_is_refused_in_one_sentence(tmp_path):
    save(build(compose("model.characters='0123456789=abc'").model, seed=9), tmp_path / "other")
    config = compose(*SMALL, DISTILLATION, f"algorithm.kl_to_reference.name={tmp_path / 'other'}")
    with pytest.raises(
        UserError, match=re.escape("whose vocabulary of 17 tokens is not the policy's of 19;")
    ) as caught:
        loop_of(config)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_cannot_be_loaded_is_refused_by_its_own_key(tmp_path):
    config = compose(*SMALL, DISTILLATION, f"algorithm.kl_to_reference.name={tmp_path / 'nothing'}")
    with pytest.raises(UserError, match=r"algorithm\.kl_to_reference\.name is '.*', which cannot be loaded"):
        loop_of(config)


def test_a_teacher_is_identified_by_its_content_wherever_it_stands(teacher, tmp_path):
    def identity(folder):
        return config_id(compose(*SMALL, DISTILLATION, f"algorithm.kl_to_reference.name={folder}"))

    first = identity(teacher)
    moved = teacher.rename(tmp_path / "moved")
    assert identity(moved) == first
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert config_id(compose(*SMALL, DISTILLATION, f"algorithm.kl_to_reference.name={moved}")) != first
