"""Weights in bfloat16 train as those in float32 do: their masters take steps that bfloat16 could not hold."""

import pytest
import torch

from bakeoff.errors import UserError
from bakeoff.learner.checkpoint import load_checkpoint, save_checkpoint
from bakeoff.loop import update_once
from tests.conftest import compose, loop_of, update_of

FEW = [
    "tuned=none",
    "sft.steps=60",
    "sft.accuracy=0",
    "task.digits=2",
    "batch.prompts=8",
    "batch.group_size=4",
    "task.heldout=8",
]
LOW = "model.precision=bfloat16_weights"
ARMS = {
    "grpo": ["algorithm=grpo"],
    "a critic of its own": ["algorithm=ppo"],
    "a shared trunk, recomputed": ["algorithm=ppo", "algorithm/critic=shared", "model.gradient_checkpointing=true"],
    "adapters on one base": ["algorithm=ppo", "algorithm/critic=adapter", "model.lora.rank=2"],
}
COMPARED = ("policy/entropy", "policy/gradient_norm", "policy/ratio_mean", "critic/loss", "kl/reference_k3_per_token")


@pytest.mark.parametrize("arm", ARMS)
def test_metrics_are_within_a_hundredth_of_those_in_float32(arm):
    """Or by 1 %, whichever is larger: of the first update, in which both read the same completions to a few tokens."""
    here, there = (update_of(loop_of(compose(*ARMS[arm], *FEW, *low))) for low in ([], [LOW]))
    compared = [name for name in COMPARED if name in here]
    assert len(compared) >= 4
    assert here["policy/gradient_norm"] > 0.05
    for name in compared:
        assert there[name] == pytest.approx(here[name], rel=1e-2, abs=1e-2), name


def test_weights_are_their_masters_rounded_and_masters_keep_what_rounding_loses():
    loop = loop_of(
        compose("algorithm=ppo", *FEW, LOW, "algorithm.optimizer.lr=1e-5", "algorithm.critic.optimizer.lr=1e-5")
    )
    learner = loop.learner
    before = {key: (weight.clone(), master.clone()) for key, (weight, master) in learner.masters.items()}
    assert len(before) >= 14, "every layer"
    update_once(loop)
    kept = 0
    for key, (weight, master) in learner.masters.items():
        assert torch.equal(weight, master.to(torch.bfloat16))
        still = weight == before[key][0]
        kept += int((still & (master != before[key][1])).sum())
    assert kept > 1000, "steps too small for the weight are in its master"
    assert learner.actor.head.weight.dtype == torch.float32
    frozen = [p for name, p in learner.reference.network.named_parameters() if "embed" not in name]
    assert {p.dtype for p in frozen} == {torch.bfloat16}, "frozen weights need no masters"


def test_a_run_with_masters_resumes_bit_for_bit(tmp_path):
    config = compose("algorithm=ppo", *FEW, LOW)
    loop = loop_of(config)
    update_once(loop)
    saved = save_checkpoint(tmp_path, loop.learner, {}, keep=1)
    expected = update_of(loop)
    again = loop_of(config)
    again.learner = load_checkpoint(saved, again.learner)
    found = update_of(again)
    same = [name for name in expected if name.startswith(("policy/", "critic/", "reward/", "kl/"))]
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}


def test_a_trust_region_step_is_refused():
    with pytest.raises(UserError, match=r"model.precision is bfloat16_weights, .*; choose model.precision=bfloat16"):
        compose("algorithm=trpo", *FEW, LOW)
