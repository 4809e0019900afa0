"""The page of a KL against a learned reward, from runs whose answer is known."""

import dataclasses

import pytest

from bakeoff.report.pages import overoptimisation
from bakeoff.report.study import SAMPLED
from tests.stored import study_of

# held-out sampled accuracy after 0, 4 and 8 updates; a seed lowers all alike by its thousandth
CURVES = {"none": (0.4, 0.5, 0.1), "loss_1": (0.4, 0.45, 0.42), "reward_1": (0.4, 0.45, 0.5)}


@pytest.fixture(name="study")
def fixture_study():
    runs, metrics = [], []
    for arm, curve in CURVES.items():
        for seed in (1, 2, 3):
            run = f"{arm}-{seed}"
            runs.append({"run": run, "name": arm, "algorithm": "grpo", "seed": seed})
            shift = (seed + len(arm)) / 1000
            for step, value in zip((0, 4, 8), curve, strict=True):
                metrics.append((run, SAMPLED, step, value - shift, arm, seed))
            metrics.append((run, "kl/reference_k3_per_sequence", 8, 2.0, arm, seed))
    return study_of("overoptimisation", runs, [("none-1", "study.margin", "0.02")], metrics)


def test_the_turn_is_the_update_of_the_best_accuracy_and_the_loss_is_to_the_last(study):
    found = overoptimisation.overoptimisation(study).groupby("name", sort=False)[["update", "lost"]].mean()
    assert found["update"].to_dict() == {"none": 4, "loss_1": 4, "reward_1": 8}
    assert found["lost"].to_dict() == pytest.approx({"none": 0.4, "loss_1": 0.03, "reward_1": 0.0})
    assert list(overoptimisation.table(study)["arm"]) == list(CURVES)
    text = overoptimisation.verdict(study)
    assert "starts at 0.392 and ends at 0.0940 [0.0915, 0.0965] with none, 0." in text
    assert "Significantly different are all pairs." in text


def test_one_arm_is_compared_with_nothing(study):
    alone = dataclasses.replace(
        study,
        runs=study.runs[study.runs["name"] == "none"],
        metrics=study.metrics[study.metrics["name"] == "none"],
    )
    text = overoptimisation.verdict(alone)
    assert "Nothing is compared." in text
    assert "Significantly" not in text


def test_a_kl_keeps_accuracy_and_may_delay_the_turn(study):
    effects = [claim.of(study).value for claim in overoptimisation.CLAIMS]
    assert effects == pytest.approx([0.32, 0.0, 0.4, 4.0], abs=0.01)
