"""Metrics of a user: what they read and return, that they change nothing, and what their faults cost."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from bakeoff import validation
from bakeoff.errors import UserError
from bakeoff.measure import NOT_REPRODUCIBLE
from bakeoff.reward.function import as_values
from bakeoff.reward.measure import UserMetrics, joined, scored
from bakeoff.run import train
from tests.conftest import run_of
from tests.reward.test_reward import rollout  # noqa: F401
from tests.stored import only_run

SMALL = (
    *("tuned=none", "sft.steps=0", "task.heldout=4", "batch.prompts=2", "batch.group_size=2", "evaluation.every=1"),
    *("budget={unit: updates, limit: 2}", "checkpoint.every=1"),
)
MINE = """import random

STATE = {"calls": 0}


def count(completions, **columns):
    STATE["calls"] += 1
    return [float(STATE["calls"])] * len(completions)


def spoils(prompts, completions, rewards, answer, **columns):
    STATE["calls"] += 100
    random.seed(1), completions.clear(), rewards.clear()
    return len(prompts)


def summary(completions, rewards, correct, prompts, answer):
    assert len(completions) == len(rewards) == len(correct) == len(prompts) == len(answer)
    return {"share": sum(correct) / len(correct), "most": max(rewards), "none": None}


def length(completions):
    return [float(len(text)) if text else None for text in completions]


def later(completions):
    if STATE["calls"] > 0:
        raise ValueError("only later")
    STATE["calls"] += 1
    return 1.0


def raises(completions):
    return completions[10**6]


def brevity(completions):
    return [-len(text) / 10 for text in completions]
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_theirs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def compose(*overrides):
    """Composed anew: a path in it is relative to the working folder."""
    GlobalHydra.instance().clear()
    return validation.compose(overrides)


def metrics_of(rollout, *functions, isolated=False, strict=False):  # noqa: F811
    config = compose(f"measure.functions=[{', '.join(f'./mine.py:{name}' for name in functions)}]")
    config.reward.isolated, config.reward.timeout_s = isolated, 20
    reports = []
    metrics = UserMetrics(config.measure.user, config.reward, reports.append)
    return metrics(scored(rollout, [1.0, 0.0, 0.5, 0.0], [True, False, False, False]), strict), reports


@pytest.mark.parametrize("isolated", [False, True])
def test_a_metric_is_a_mean_over_completions_a_number_or_numbers_by_name(rollout, isolated):  # noqa: F811
    values, _ = metrics_of(rollout, "length", "summary", "later", isolated=isolated)
    assert values == {"length": pytest.approx(5 / 3), "summary_share": 0.25, "summary_most": 1.0, "later": 1.0}


@pytest.mark.parametrize("returned", [None, "high", [1.0], {"a": "b"}, {"a/b": 1}, float("nan"), {1: float("inf")}])
def test_what_is_no_value_is_refused_with_the_name_of_the_metric(returned):
    with pytest.raises(UserError, match="my metric returned"):
        as_values("my metric", returned, 2)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_metric_that_fails_has_no_value_and_is_reported_with_its_line(rollout, isolated):  # noqa: F811
    values, reports = metrics_of(rollout, "raises", "length", isolated=isolated)
    assert list(values) == ["length"]
    line = 1 + MINE.splitlines().index("    return completions[10**6]")
    assert re.search(rf"raised IndexError: .* \({Path.cwd()}/mine.py:{line}\); the metric has no value", reports[0])


def test_a_metric_that_fails_in_the_first_evaluation_is_a_mistake(rollout):  # noqa: F811
    with pytest.raises(
        UserError, match=r"measure.functions: ./mine.py:raises .*; it is called with .*rewards, correct"
    ):
        metrics_of(rollout, "raises", strict=True)


def test_a_metric_in_the_runs_process_gets_a_copy_and_draws_apart(rollout):  # noqa: F811
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    texts = list(rollout.completions)
    metrics_of(rollout, "spoils")
    assert rollout.completions == texts
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_parts_of_an_evaluation_are_read_as_one(rollout):  # noqa: F811
    one = scored(rollout, [1.0] * 4, [True] * 4)
    other = {name: values for name, values in one.items() if name != "level"}
    both = joined([one, other])
    assert both["level"] == [1, 1, 2, 2, None, None, None, None]
    assert len(both["completions"]) == len(both["correct"]) == 8


def test_a_metric_changes_no_curve_of_a_run_whose_reward_has_a_state(tmp_path):
    """The reward counts its calls in a variable that the metric changes too, in its own worker."""
    plain, measured = [], []
    reward = ("reward.functions={./mine.py:count: 1}", "reward.timeout_s=20", "checkpoint.every=0")
    alone = ("reward.isolated=false",)  # faster, with the same scores
    for logged, more in ((plain, alone), (measured, ("measure.functions=[./mine.py:spoils, ./mine.py:count]",))):
        run = run_of(compose(*SMALL, *reward, *more), tmp_path / more[0][:7])
        train(run)
        logged += run.tracker.logged
    trained = [{k: v for k, v in each.items() if not k.startswith(NOT_REPRODUCIBLE)} for each in plain]
    assert [{k: v for k, v in each.items() if k in one} for each, one in zip(measured, trained, strict=True)] == trained
    assert [each["user/spoils"] for each in measured if "user/spoils" in each] == [4, 4]
    evaluated = [each["eval/user/spoils"] for each in measured if "eval/user/spoils" in each]
    assert evaluated[:2] == [32, 4], "the first evaluation reads the whole set"


def test_the_command_measures_in_training_and_evaluation_and_resumes_with_the_file_alone(command, tmp_path):
    """From a folder of theirs, with a reward of theirs in YAML; a changed file is another reward."""
    (tmp_path / "conf" / "reward").mkdir(parents=True)
    (tmp_path / "conf" / "reward" / "mine.yaml").write_text(
        "defaults: [/schema_reward@_here_]\nfunctions: {verifier: 1.0, ./mine.py:brevity: 0.1}\nisolated: false\n"
    )
    out = "hydra.run.dir=out"
    names = "measure.functions=[./mine.py:summary, ./mine.py:length]"
    ran = command(*SMALL, "reward=mine", names, out)
    assert ran.returncode == 0, ran.stderr
    run = only_run(tmp_path)
    assert {"user/length", "user/summary_share", "eval/user/length", "eval/user/summary_most"} <= set(run.data.metrics)
    assert {"reward/term_mine.brevity", "reward/term_mine.brevity_min"} <= set(run.data.metrics)

    longer = ("resume=out", "budget.limit=3")
    allowed = "reward.functions={./mine.py:brevity: 0.1}"
    refused = command(*longer)
    assert "to allow that, add 'reward.functions={./mine.py:brevity: 0.1}'" in refused.stderr
    refused = command(*longer, allowed)
    assert f"(measure.functions); to allow that, add '{names}'" in refused.stderr
    resumed = command(*longer, allowed, names)
    assert resumed.returncode == 0, resumed.stderr
    (tmp_path / "mine.py").write_text(MINE.replace("/ 10", "/ 20"))
    refused = command("resume=out", "budget.limit=4", allowed, names)
    assert "./mine.py:brevity names has changed since the run" in refused.stderr


def test_the_command_refuses_a_metric_that_fails_before_it_trains(command):
    refused = command(*SMALL, "reward.isolated=false", "measure.functions=[./mine.py:raises]")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "raised IndexError: list index out of range" in refused.stderr
    assert "mine.py:" in refused.stderr
