"""Runs whose numbers become infinite or NaN end as FAILED, with one sentence and a good last checkpoint."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import call
from tests.stored import only_run

SHORT = [
    *("algorithm=ppo", "tuned=none", "batch.prompts=4", "batch.group_size=2", "task.digits=2"),
    *("task.max_new_tokens=3", "task.heldout=2", "evaluation.every=9", "checkpoint.every=1", "hydra.run.dir=out"),
    "budget={unit: updates, limit: 8}",
]
REWARDS = """
CALLS = []

def vast_at_third(completions, **columns):
    CALLS.append(completions)
    return [3e38 if len(CALLS) == 3 else float(len(c)) for c in completions]
"""
CASES = {
    "a reward that overflows": (
        ["sft.steps=1", "sft.batch=8", "reward=function", "+reward.functions={rewards.vast_at_third: 1.0}"],
        "diverged in update 3, phase actor_update: the norm of the gradient is not finite",
        "A lower algorithm.optimizer.lr (it was 1e-06)",
    ),
    "an actor that steps too far": (
        ["sft.steps=1", "sft.batch=8", "algorithm.optimizer.lr=1e30"],
        "diverged in update 1, phase ",
        "A lower algorithm.optimizer.lr (it was 1e+30)",
    ),
    "a critic that steps too far": (
        ["sft.steps=1", "sft.batch=8", "algorithm.critic.optimizer.lr=1e30"],
        "diverged in update 1, phase critic_update: ",
        "A lower algorithm.critic.optimizer.lr (it was 1e+30)",
    ),
    "a start that steps too far": (
        ["sft.steps=5", "sft.batch=8", "sft.lr=1e30"],
        "diverged in the supervised start: the norm of the gradient is not finite",
        "A lower sft.lr (it was 1e+30)",
    ),
    "a start whose last step goes too far": (
        [
            "sft.steps=1",
            "sft.accuracy=0",
            "sft.batch=8",
            "sft.lr=1e39",
        ],  # beyond float32: normalisation hides smaller steps
        "diverged in the supervised start: a log-probability of the policy after the step is not finite",
        "A lower sft.lr (it was 1e+39) may help; there is no checkpoint.",
    ),
    "a reward model that steps too far": (
        [
            *("sft.steps=1", "sft.batch=8", "reward=learned", "preferences.lr=1e30", "preferences.pairs=4"),
            *("preferences.heldout=2", "preferences.batch=2", "batch.prompts=8"),
        ],
        "diverged in the training of the reward model: the norm of the gradient is not finite",
        "A lower preferences.lr (it was 1e+30)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_diverging_run_reports_where_it_diverged_and_what_may_help(case, tmp_path: Path):
    overrides, where, remedy = CASES[case]
    (tmp_path / "rewards.py").write_text(REWARDS)
    result = call("bakeoff.__main__", (*SHORT, *overrides), tmp_path)
    sentence = " ".join(result.stderr.split())
    assert result.returncode == 2, sentence
    assert where in sentence
    assert remedy in sentence
    assert "Traceback" not in sentence
    run = only_run(tmp_path)
    assert (run.info.status, run.data.tags["outcome"]) == ("FAILED", "diverged")
    kept = sorted((tmp_path / "out" / "checkpoints").glob("update_*"))
    assert bool(kept) == ("update 3" in where)
    for checkpoint in kept:
        assert str(checkpoint.relative_to(tmp_path)) in sentence or checkpoint is not kept[-1]
        for path in checkpoint.glob("*.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values()), path


def test_the_reward_model_command_reports_divergence_in_one_sentence(tmp_path):
    few = ["preferences.pairs=4", "preferences.heldout=2", "preferences.batch=2"]
    short = [
        "sft.steps=1",
        "sft.batch=8",
        "batch.prompts=8",
        "task.digits=2",
        "task.max_new_tokens=3",
        "task.heldout=2",
    ]
    result = call("bakeoff.reward_model", (*short, *few, "preferences.lr=1e38"), tmp_path)
    sentence = " ".join(result.stderr.split())
    assert result.returncode == 2, sentence
    assert "diverged in the training of the reward model: " in sentence
    assert "A lower preferences.lr (it was 1e+38) may help." in sentence
    assert "Traceback" not in sentence
