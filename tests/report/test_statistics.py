"""Small-sample statistics and the frames of a study, against numbers worked out by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from bakeoff.report import overoptimisation, tables
from bakeoff.report.figures import colours, curves
from bakeoff.report.statistics import (
    area_under_curve,
    first_at,
    interquartile_mean,
    mean_interval,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
    told_apart,
)
from bakeoff.report.study import Study, config_diff, mismatches, varied
from bakeoff.tracking import Tracking


def test_mean_interval_by_hand():
    """1, 2, 3: mean 2, standard error 1/√3, t(0.975, 2) = 4.302653."""
    mean, low, high = mean_interval(pd.Series([1.0, 2.0, 3.0]))
    half = 4.302653 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)


def test_one_value_has_no_interval():
    mean, low, high = mean_interval(pd.Series([0.5]))
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_paired_difference_uses_only_common_seeds():
    a = pd.Series([1.0, 2.0, 9.0], index=[1, 2, 7])
    b = pd.Series([0.5, 1.0], index=[2, 1])
    mean, low, high = paired_difference(a, b)  # seed 1: 0, seed 2: 1.5
    assert mean == pytest.approx(0.75)
    assert low < 0 < high


def test_interquartile_mean_by_hand():
    """Of 1 … 8 a quarter goes at either end: the mean of 3, 4, 5, 6. Of three nothing goes."""
    assert interquartile_mean(np.array([8, 1, 7, 2, 6, 3, 5, 4.0])) == 4.5
    assert interquartile_mean(np.array([[1.0, 2.0, 3.0, 100.0], [8, 7, 6, 5]])).tolist() == [2.5, 6.5], (
        "of the last axis"
    )
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3


def test_the_stratified_bootstrap_draws_within_tasks():
    """Two tasks of two runs each: a mean of {0, 1} and {10, 11} is never below 5 or above 6, and often is either."""
    tasks = [np.array([0.0, 1.0]), np.array([10.0, 11.0])]
    value, low, high = stratified_interval(tasks, lambda x: x.mean(-1))
    assert (value, low, high) == (5.5, 5.0, 6.0)
    assert np.isnan(stratified_interval([np.array([1.0])])[1:]).all()


def test_the_bootstrap_interval_is_the_exact_one():
    """Three runs 0, 0, 1: a resampled mean is 0 with probability 8/27, and 1 with 1/27 > 2.5 %."""
    value, low, high = stratified_interval([np.array([0.0, 0.0, 1.0])], lambda x: x.mean(-1))
    assert value == pytest.approx(1 / 3)
    assert (low, high) == (0.0, 1.0)


def test_probability_of_improvement_by_hand():
    """Against {1, 3}: 2 wins once of twice, 3 wins once and ties once: 2.5 of 4. A second task is all wins."""
    a, b = np.array([2.0, 3.0]), np.array([1.0, 3.0])
    assert probability_of_improvement([a], [b]) == 2.5 / 4
    assert probability_of_improvement([a, a], [b, b - 9]) == (2.5 / 4 + 1) / 2
    assert probability_of_improvement([a], [b]) + probability_of_improvement([b], [a]) == 1


def test_performance_profile_by_hand():
    profile = performance_profile(np.array([0.2, 0.5, 0.5, 0.9]), np.array([0.0, 0.2, 0.5, 1.0]))
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.0]


def test_area_and_threshold_by_hand():
    x, y = np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 0.5])
    assert area_under_curve(x, y) == pytest.approx((0.5 + 1.5) / 3)
    assert first_at(x, y, 0.25) == 0.25
    assert first_at(x, y, 0.0) == 0.0
    assert np.isnan(first_at(x, y, 1.1))
    assert first_at(x, np.array([0.2, 0.1, 0.3]), 0.2) == 0


def test_only_an_interval_on_one_side_of_zero_tells_apart():
    assert told_apart((0.1, 0.05, 0.15), "a", "b") == "a is higher"
    assert told_apart((-0.1, -0.15, -0.05), "a", "b") == "b is higher"
    assert told_apart((0.1, -0.05, 0.25), "a", "b") == "they tie"
    assert told_apart((0.1, math.nan, math.nan), "a", "b") == "they tie", "one seed has no interval"


def study(greedy, failed=(), tuned="yes", group=("4", "4")):
    """Two arms; greedy[arm] is the final accuracy of each seed."""
    runs, params, metrics = [], [], []
    for arm, size in zip(greedy, group, strict=True):
        for seed, value in greedy[arm].items():
            run = f"{arm}{seed}"
            runs.append({"run": run, "arm": arm, "name": arm, "algorithm": arm, "seed": seed, "start": "same"})
            runs[-1] |= {"status": "FINISHED", "tuned": tuned}
            params += [(run, "batch.group_size", size), (run, "algorithm.optimizer.lr", "1" if arm == "grpo" else "2")]
            params += [(run, "seed", str(seed))]
            for step, share in ((0, 0.0), (1, 0.5), (2, 1.0)):
                metrics.append((run, "eval/greedy_accuracy", step, 0.2 + share * (value - 0.2), arm, seed))
                metrics.append((run, "eval/sampled_accuracy", step, 0.1, arm, seed))
                metrics.append((run, "kl/reference_k3_per_sequence", step, share, arm, seed))
                if step:
                    metrics.append((run, "progress/seconds", step, 10.0 * step * seed, arm, seed))
                    metrics.append((run, "memory/peak_mb", step, 7.0, arm, seed))
    frame = pd.DataFrame(runs)
    failed = frame["run"].isin(failed)
    return Study(
        "methods",
        "which?",
        "methods",
        "parent",
        Tracking(uri=""),
        frame[~failed],
        frame[failed].assign(status="FAILED", outcome="out of memory", failure="OutOfMemory: in rollout"),
        pd.DataFrame(params, columns=["run", "key", "value"]),
        pd.DataFrame(metrics, columns=["run", "metric", "step", "value", "name", "seed"])
        .sort_values(["run", "metric", "step"])
        .astype({"run": "category", "metric": "category"}),
    )


def test_comparison_and_differences():
    data = study({"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}})
    table = tables.comparison(data).set_index("method")
    assert table.loc["ppo", "held-out greedy"] == pytest.approx(0.91)
    assert table.loc["grpo", "start"] == pytest.approx(0.2)
    assert table.loc["grpo", "training time (s)"] == pytest.approx(30)
    (pair,) = tables.differences(data).to_dict("records")
    assert pair["a − b"] == pytest.approx(0.1)
    assert pair["at 95 %"] == "ppo is higher", "the paired difference is 0.1 in both seeds"


def test_a_tie_is_called_a_tie():
    data = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})
    assert tables.differences(data)["at 95 %"].tolist() == ["they tie"]
    assert "they tie" in tables.verdict(data)
    told = study({"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}})
    assert "ppo is higher" in tables.verdict(told)


def test_the_league_names_ties_and_distances():
    """Against the best: a paired difference of 0.1 in both seeds, and one of 0 and 0.2."""
    data = study(
        {"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}, "rloo": {1: 0.9, 2: 0.72}}, group=("4", "4", "4")
    )
    table = tables.league(data).set_index("method")
    assert table.index[0] == "ppo"
    assert table.loc["grpo", "against the best"].startswith("-0.100")
    assert table.loc["rloo", "against the best"] == "tie"
    lines = tables.league_markdown(data).splitlines()
    assert lines[0].startswith("| method")
    assert len(lines) == 5
    assert "`ppo`" in lines[2]
    assert "Not told apart from it at 95 %: rloo. Below it: grpo (-0.100" in tables.all_against_best(data)


def test_overoptimisation_by_hand():
    """The true reward rises to 0.8 and falls to 0.5 while the learned one rises on."""
    data = study({"ppo": {1: 0.9, 2: 0.92}}, group=("4",))
    true, learned = [0.4, 0.6, 0.8, 0.5], [0.0, 1.0, 2.0, 3.0]
    metrics = ("reward/true", "reward/term_learned", "kl/reference_k3_per_sequence")
    rows = [
        (f"ppo{seed}", metric, step, values[step - 1], "ppo", seed)
        for seed in (1, 2)
        for metric, values in zip(metrics, (true, learned, learned), strict=True)
        for step in range(1, 5)
    ]
    data.metrics = pd.DataFrame(rows, columns=data.metrics.columns)
    table = overoptimisation.overoptimisation(data, window=1)
    assert table["true at best"].tolist() == [0.8, 0.8]
    assert table["at update"].tolist() == [3, 3]
    assert table["KL there"].tolist() == [2, 2]
    assert table["lost"].tolist() == pytest.approx([0.3, 0.3])
    assert "Under ppo the true reward rises (+0.100 [+0.100, +0.100]" in overoptimisation.overoptimisation_verdict(
        data, 1
    )


def test_matched_arms_have_nothing_to_say():
    assert mismatches(study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})) == []


def test_unmatched_arms_are_named():
    found = mismatches(study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8}}, ["ppo1"], "untuned", ("4", "8")))
    text = "; ".join(found)
    assert "batch.group_size differs: ppo 4; grpo 8" in text
    assert "ppo seed 1 is OOM: OutOfMemory: in rollout" in text
    assert "ppo has no run with seed 1" in text
    assert "ppo was not tuned" in text


def test_a_value_that_only_one_arm_has_is_a_difference():
    data = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})
    extra = pd.DataFrame({"run": ["grpo1", "grpo2"], "key": "reward.process.verifier", "value": "1.0"})
    data.params = pd.concat([data.params, extra])
    assert mismatches(data) == ["reward.process.verifier differs: grpo 1.0; ppo none"]


def test_what_a_sweep_varies_and_what_a_seed_draws_is_no_mismatch():
    data = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}}, group=("4", "8"))
    sizes = {"ppo": "4", "grpo": "8"}
    data.runs["overrides"] = [json.dumps([f"batch.group_size={sizes[name]}"]) for name in data.runs["name"]]
    seeds = [(run, "sft.seed", run[-1]) for run in data.runs["run"]]
    data.params = pd.concat([data.params, pd.DataFrame(seeds, columns=["run", "key", "value"])])
    data.runs["start"] = data.runs["seed"].astype(str)
    assert varied(data.runs) == ["batch.group_size"]
    assert mismatches(data) == []
    declared = [(run, "study.varies", "['reward']") for run in data.runs["run"]]
    declared += [(run, "reward.process.verifier", "1.0") for run in ("ppo1", "ppo2")]
    data.params = pd.concat([data.params, pd.DataFrame(declared, columns=["run", "key", "value"])])
    assert mismatches(data) == [], "the study says that its arms differ in the reward"
    data.runs.loc[data.runs["run"] == "ppo1", "start"] = "other"
    assert mismatches(data) == ["the arms start from different weights"]


def test_config_diff_shows_what_differs_and_no_seed():
    diff = config_diff(study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}}))
    assert diff.to_dict("index") == {"algorithm.optimizer.lr": {"ppo": "2", "grpo": "1"}}


def test_curves_against_seconds_interpolate_the_counter():
    data = curves(study({"ppo": {1: 1.0}, "grpo": {2: 0.8}}), "eval/greedy_accuracy", "seconds")
    grpo = data[data["name"] == "grpo"]
    assert grpo["x"].tolist() == [0, 20, 40]
    assert grpo["value"].tolist() == pytest.approx([0.2, 0.5, 0.8])


def test_a_method_keeps_its_colour():
    assert colours(["grpo", "new"])["grpo"] == colours(["ppo", "grpo"])["grpo"]
    assert len(set(colours(["ppo", "ppo_kl", "grpo", "a", "b"]).values())) == 5


def test_an_arm_without_a_finished_run_is_in_the_league_as_what_became_of_it():
    data = study({"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}}, ["grpo1", "grpo2"])
    assert data.arms == ["ppo"]
    table = tables.league(data)[["method", "seeds", "against the best"]]
    assert table.values.tolist() == [["ppo", 2, "best mean"], ["grpo", 0, "OOM"]]
    assert "`grpo`   | –" in tables.league_markdown(data)


def test_what_the_seed_draws_is_no_difference_between_arms():
    """Two jobs at a time end in any order: an arm's first run need not be of the first seed."""
    data = study({"ppo": {2: 0.9, 1: 0.9}, "grpo": {1: 0.8, 2: 0.8}})
    drawn = pd.DataFrame({"run": data.runs["run"], "key": "sft.seed", "value": data.runs["seed"].astype(str)})
    data.params = pd.concat([data.params, drawn], ignore_index=True)
    assert config_diff(data).index.tolist() == ["algorithm.optimizer.lr"]
