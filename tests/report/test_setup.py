"""The set-up of a page: what a reader must know to judge a stranger's runs."""

import pandas as pd
import pytest

from bakeoff.identity import flatten, plain
from bakeoff.report.setup import setup
from bakeoff.report.study import provenance
from tests.conftest import compose
from tests.stored import study_of

SEEDS = "study.tuning_seeds=[100]"
REWARDS = "def brief(completions, **columns):\n    return [0.0 for _ in completions]\n"


def of_configurations(tuned="untuned", **configurations):
    """A study of one run for each configuration, with the parameters that a run of it logs."""
    runs = [
        {"run": name, "name": name, "algorithm": name, "seed": 1, "task": "dataset", "tuned": tuned}
        for name in configurations
    ]
    params = [
        (name, key, str(value))
        for name, config in configurations.items()
        for key, value in flatten(plain(config)).items()
    ]
    return study_of("mine", runs, params, [])


@pytest.fixture
def words(tmp_path):
    """A user's task and reward as overrides; their words hold braces and markup, which are only shown."""
    (tmp_path / "train.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+2=", "answer": "4"}\n')
    (tmp_path / "mine.py").write_text(REWARDS)
    return [
        *("task=dataset", f"task.path={tmp_path / 'train.jsonl'}", "task.heldout=1", "task.verify=number"),
        *("task.extract=after", "'task.after=\"answer {0}<b>\"'", "tuned=none", "batch.prompts=2"),
        f"reward.functions={{{tmp_path / 'mine.py'}:brief: 0.5, format: 0.2}}",
        *("reward.missing_eos_penalty=1", "'reward.format.pattern=\".{1}\"'"),
    ]


def test_the_set_up_has_rewards_verifier_data_and_rates(words, tmp_path):
    words = [each.strip("'") for each in words]
    study = of_configurations(
        ppo=compose(*words, SEEDS, "algorithm=ppo", "algorithm.optimizer.lr=1e-5"),
        trpo=compose(*words, SEEDS, "algorithm=trpo", "algorithm.optimizer.max_kl=0.02"),
    )
    found = setup(study)
    assert found["verifier"] == "verify=number extract=after after=answer {0}<b>"
    assert (
        found["reward"]
        == f"1 × verifier + 0.5 × {tmp_path}/mine.py:brief + 0.2 × format; pattern .{{1}}; −1 without EOS"
    )
    assert f"{tmp_path}/train.jsonl " in found["files (SHA-256)"]
    assert f"{tmp_path}/mine.py:brief " in found["files (SHA-256)"]
    assert found["learning rates"].startswith("ppo 1e-05, critic 0.0001 (not tuned); trpo KL at most 0.02")
    assert found["batch"].startswith("2 prompts × ")
    assert "tuned on" not in found["seeds"]
    assert provenance(study).endswith("nothing was tuned"), (
        "the study's file names a tuning seed, but no run has its values"
    )


def test_the_set_up_of_a_task_without_end_and_its_start_and_tuning():
    config = compose(SEEDS, "algorithm=grpo", "evaluation.final=1024")
    found = setup(of_configurations(tuned="sort_tiny/grpo", grpo=config))
    assert found["data"] == "generated; 512 held-out prompts, 1,024 by the first and the last evaluation"
    assert found["start"] == "at most 400 supervised steps, until 0.36 of its samples are right"
    assert found["reward"] == "1 × verifier"
    assert f"(tuned in sort_tiny/grpo, {config.tuned.trials} trials, {config.tuned.date})" in found["learning rates"]
    assert found["seeds"] == "1; tuned on 100"


def test_the_set_up_of_runs_without_parameters_is_what_they_say():
    study = of_configurations()
    study.runs = pd.DataFrame([{"run": "a", "name": "a", "algorithm": "a", "seed": 3}])
    assert set(setup(study)) == {"runs", "seeds", "command of the runs", "command of this page"}
