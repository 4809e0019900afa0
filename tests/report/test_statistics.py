"""Small-sample statistics and the frames of a study, against numbers worked out by hand."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bakeoff.errors import UserError
from bakeoff.report import across_seeds
from bakeoff.report.claim import difference
from bakeoff.report.comparisons import Family, family
from bakeoff.report.curve import area_under_curve, first_at, learning_curve
from bakeoff.report.detect import detect
from bakeoff.report.figures import MANY, colours, curves, plot_curves, plot_terms
from bakeoff.report.idle import idle
from bakeoff.report.matching import config_diff, configuration, mismatches
from bakeoff.report.naming import arm_names, varied
from bakeoff.report.pages import methods, rlhf
from bakeoff.report.statistics import (
    Estimate,
    confidence,
    corrected_for,
    detectable,
    equivalence_p,
    equivalent,
    holm,
    improvement_over_regimes,
    interquartile_mean,
    mean_interval,
    paired_difference,
    paired_p,
    performance_profile,
    probability_of_improvement,
    ratio_of_means,
    rounding,
    seeds_to_detect,
    share_interval,
    stratified_iqm,
)
from bakeoff.report.study import Study
from bakeoff.report.tables import FINAL_ACCURACY, html_cell, markdown, mean_text, number, per_seed


def test_mean_interval_by_hand():
    """1, 2, 3: mean 2, standard error 1/√3, t(0.975, 2) = 4.302653."""
    mean, low, high = mean_interval(pd.Series([1.0, 2.0, 3.0]))
    half = 4.302653 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)


def test_the_interval_of_a_share_is_students_on_the_logit_scale():
    """0.8, 0.9, 1.0: mean 0.9, standard error 0.1/√3 of the mean, and by 0.9 · 0.1 more of its logit, ln 9."""
    mean, low, high = share_interval(pd.Series([0.8, 0.9, 1.0]))
    half = 4.302653 * 0.1 / math.sqrt(3) / 0.09
    assert mean == pytest.approx(0.9)
    logits = [math.log(each / (1 - each)) for each in (low, high)]
    assert logits == pytest.approx([math.log(9) - half, math.log(9) + half])
    assert share_interval(pd.Series([1.0, 1.0])) == (1, 1, 1), "every share is the bound"
    assert math.isnan(share_interval(pd.Series([0.5])).low)


def test_digits_end_where_the_uncertainty_begins():
    assert Estimate(12345.6, 9345.6, 15345.6).text() == "12300 [9300, 15300]"
    assert Estimate(0.5, 0.1, 0.9).text() == "0.5 [0.1, 0.9]"
    assert mean_text(pd.Series([34.21, 35.18, 36.33])) == "35.2", "half width 2.6"
    assert (mean_text(pd.Series([35.18])), mean_text(pd.Series([8.0, 8.0]))) == ("35.2", "8.00"), "no uncertainty"


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
    """Of 1 … 8 a quarter is left out at either end: the mean of 3, 4, 5, 6."""
    assert interquartile_mean(pd.Series([8, 1, 7, 2, 6, 3, 5, 4.0])).value == 4.5


def test_an_iqm_of_four_runs_is_not_stated():
    assert np.isnan(interquartile_mean(pd.Series([1.0, 2.0, 6.0, 7.0]))).all()
    assert not np.isnan(interquartile_mean(pd.Series([1.0, 2.0, 6.0, 7.0, 9.0]))).any()


def test_holms_correction_by_hand():
    """The smallest counts three times, the next twice, and none is below one before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([]) == []


def test_a_paired_p_is_scipys_and_one_seed_has_none():
    d = pd.Series([0.01, 0.03, -0.01, 0.02])
    assert paired_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue)
    assert paired_p(d[:1]) == 1
    assert paired_p(pd.Series([0.0, 0.0])) == 1
    assert paired_p(pd.Series([0.1, 0.1])) == 0


@pytest.mark.parametrize("prompts", [16, 64, 512])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_that_agree_to_the_prompt_are_no_certainty(prompts, seeds):
    """One prompt more in every seed may be chance; all prompts more is none."""
    one, every = pd.Series([1 / prompts] * seeds), pd.Series([1.0] * seeds)
    mean, low, high = mean_interval(one, 1 / prompts)
    assert low < mean < high
    assert paired_p(one, 1 / prompts) > (0.05 if seeds < 4 else 0)
    assert paired_p(every, 1 / prompts) < 0.05
    assert equivalent(one, 1.1 / prompts)
    assert not equivalent(one, 1.1 / prompts, 1 / prompts)
    spread = pd.Series([0.1, 0.4, 0.2])
    assert mean_interval(spread, 1 / prompts) == mean_interval(spread), "a spread beyond the rounding stands"


def test_arms_are_equivalent_where_both_one_sided_tests_say_so():
    d = pd.Series([0.011, 0.006, 0.013, 0.009])
    below, above = (
        stats.ttest_1samp(d, bar, alternative=way).pvalue for bar, way in ((0.02, "less"), (-0.02, "greater"))
    )
    assert max(below, above) < 0.05
    assert equivalent(d, 0.02)
    tight = d.mean() + stats.t.ppf(0.95, 3) * stats.sem(d)
    assert not equivalent(d, tight - 1e-6)
    assert equivalent(d, tight + 1e-6)
    assert not equivalent(d[:1], 1.0)


def test_a_detectable_difference_is_found_in_four_of_five_studies():
    """The table of an audit: 0.0089 over seeds; and by simulation, for one comparison and for seventeen."""
    assert [detectable(0.0089, n) for n in (3, 5, 10, 20)] == pytest.approx([0.030, 0.015, 0.009, 0.006], abs=1e-3)
    assert (seeds_to_detect(0.01, 0.0089), seeds_to_detect(0.01, 0.0089, 17)) == (9, 16)
    alike = seeds_to_detect(0.01, 1e-9, step=1 / 64)  # seeds that agree to the last prompt deviate by their rounding
    assert alike == seeds_to_detect(0.01, rounding(1 / 64)) > seeds_to_detect(0.01, 1e-9)
    assert math.isinf(detectable(0.0089, 1))
    draws = np.random.default_rng(0).normal(size=(20_000, 5))
    for comparisons in (1, 17):
        p = stats.ttest_1samp(draws + detectable(1.0, 5, comparisons), 0, axis=1).pvalue
        assert (p < 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seeds", [3, 10])
def test_families_with_equal_arms_call_an_arm_lower_in_one_of_twenty(named, seeds):
    """Eight arms that tie, their runs correlated by seed, compared with a named arm, or all with each other.

    The reference that is the largest of eight noisy means is among the pairs, so choosing it afterwards costs nothing.
    """
    rng, wrong, families = np.random.default_rng(1), 0, 400
    for _ in range(families):
        runs = rng.normal(size=(8, seeds)) + 2 * rng.normal(size=seeds)
        pairs = [(0, b) for b in range(1, 8)] if named else list(itertools.combinations(range(8), 2))
        p = stats.ttest_1samp(np.array([runs[a] - runs[b] for a, b in pairs]), 0, axis=1).pvalue
        wrong += min(holm(p)) < 0.05
    assert wrong / families < 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


def test_a_ratio_of_restricted_means_counts_the_budget_of_a_run_that_never_arrives():
    """Half as much in every seed is a half without doubt; a run at its budget moves the mean as far as that."""
    one = pd.Series([10.0, 20.0, 40.0, 40.0, 40.0], index=range(5))
    assert ratio_of_means(one / 2, one) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    some = ratio_of_means(pd.Series([5.0, 40.0, 10.0, 12.0, 9.0]), one)
    assert some.value == pytest.approx(76 / 150)
    assert 0 < some.low < some.value < some.high
    assert np.isnan(ratio_of_means(one[:1], one[:1])[1:]).all()
    assert np.isnan(ratio_of_means(one, one[:0]).value)


@pytest.mark.parametrize("level", [0.95, 0.998])
def test_a_ratio_of_means_of_ten_seeds_errs_as_often_as_its_level_says(level):
    rng, wrong, studies = np.random.default_rng(0), 0, 2000
    for _ in range(studies):
        shared = rng.normal(100, 10, 10)
        a, b = (pd.Series(shared + rng.normal(0, 20, 10)) for _ in range(2))
        with confidence(level):
            found = ratio_of_means(a, b)
        wrong += not found.low <= 1 <= found.high
    expected = 1 - level
    assert wrong / studies < expected + 3 * math.sqrt(expected * level / studies)


def test_the_p_of_equivalence_is_that_of_two_one_sided_tests():
    values = pd.Series([0.010, -0.004, 0.012, 0.001, 0.006])
    below = stats.ttest_1samp(values, 0.02, alternative="less").pvalue
    above = stats.ttest_1samp(values, -0.02, alternative="greater").pvalue
    assert equivalence_p(values, 0.02) == pytest.approx(max(below, above))
    assert equivalence_p(values[:1], 0.02) == 1
    assert equivalence_p(pd.Series([0.0, 0.0]), 0.02) == 0
    assert equivalence_p(pd.Series([0.03, 0.03]), 0.02) == 1


def test_a_learning_curve_has_the_sigmoids_parameters_and_a_straight_line_has_none():
    x = np.linspace(0, 25_600, 11)
    curve = 0.3 + 0.6 / (1 + (6000 / np.maximum(x, 1e-9)) ** 1.7)
    noise = np.random.default_rng(0).normal(scale=0.003, size=11)
    assert learning_curve(x, curve) == pytest.approx((0.9, 6000, 1.7), rel=1e-3)
    asymptote, middle, _ = learning_curve(x, curve + noise)
    assert asymptote == pytest.approx(0.9, abs=0.03)
    assert middle == pytest.approx(6000, rel=0.1)
    for unfit in (np.linspace(0.1, 0.9, 11), np.full(11, 0.5), curve[::-1]):
        assert np.isnan(learning_curve(x, unfit)).all()
    assert np.isnan(learning_curve(x[:5], curve[:5])).all()


def test_a_sigmoid_is_fitted_to_the_mean_curve_of_seeds_with_an_interval_from_five_on():
    x, rng = np.linspace(0, 25_600, 11), np.random.default_rng(0)
    curve = 0.3 + 0.5 / (1 + (6000 / np.maximum(x, 1e-9)) ** 2)
    runs = [(x, curve + level + rng.normal(scale=0.01, size=11)) for level in np.linspace(-0.05, 0.05, 8)]
    asymptote, middle, _ = across_seeds.fit(runs)
    assert asymptote.low < 0.8 < asymptote.high < 0.9
    assert asymptote.low > 0.7
    assert middle.low < 6000 < middle.high
    few, *_ = across_seeds.fit(runs[2:6])
    assert few.value == pytest.approx(0.8, abs=0.05)
    assert math.isnan(few.low), "four seeds are no sample to draw from"
    line = [(x, np.linspace(0.1, 0.9, 11))] * 5
    assert all(math.isnan(each.value) for each in across_seeds.fit(line))


def test_probability_of_improvement_by_hand():
    """Against {1, 3}: 2 wins once of twice, 3 wins once and ties once: 2.5 of 4."""
    a, b = pd.Series([2.0, 3.0]), pd.Series([1.0, 3.0])
    assert probability_of_improvement(a, b) == 2.5 / 4
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == 1
    assert probability_of_improvement(a, a - 9) == 1


def scores(**regimes):
    """A frame of scores by regime; seeds are numbered."""
    rows = [(name, seed, score) for name, own in regimes.items() for seed, score in enumerate(own)]
    return pd.DataFrame(rows, columns=["regime", "seed", "score"])


def test_an_iqm_over_regimes_is_of_all_runs_and_its_bootstrap_keeps_each_regime():
    """Regimes without spread have no uncertainty, though the runs of both together differ widely."""
    apart = stratified_iqm(scores(easy=[0.9] * 5, hard=[0.1] * 5))
    assert apart == pytest.approx((0.5, 0.5, 0.5))
    one = [0.1, 0.4, 0.5, 0.7, 0.9, 0.3]
    value, low, high = stratified_iqm(scores(only=one))
    assert value == pytest.approx(stats.trim_mean(one, 0.25))
    kept = {"confidence_level": 0.95, "method": "percentile", "n_resamples": 20_000, "rng": 1}
    exact = stats.bootstrap((one,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), **kept).confidence_interval
    assert (low, high) == pytest.approx(tuple(exact), abs=0.02)
    assert np.isnan(stratified_iqm(scores(a=one, b=[0.1, 0.2]))[1:]).all(), "two seeds have no bootstrap"
    assert np.isnan(stratified_iqm(scores()).value)


def test_improvement_over_regimes_is_the_mean_of_each_regimes_own():
    a = scores(plain=[1.0, 2.0, 3.0, 4.0, 5.0], noise=[1.0] * 5, mine=[9.0] * 5)
    b = scores(plain=[0.0] * 5, noise=[1.0] * 5, other=[9.0] * 5)
    assert improvement_over_regimes(a, b) == pytest.approx((0.75, 0.75, 0.75)), "always above, and always equal"
    drawn = np.random.default_rng(0).normal(size=(2, 8))
    forth, back = (improvement_over_regimes(scores(r=drawn[i]), scores(r=drawn[1 - i])) for i in (0, 1))
    assert forth.value == pytest.approx(probability_of_improvement(*drawn))
    assert forth.value + back.value == pytest.approx(1)
    assert np.isnan(improvement_over_regimes(scores(x=[1.0]), scores(y=[1.0])).value)


def test_the_interval_of_a_probability_of_improvement_covers_the_truth_in_most_studies():
    """Of ten against ten runs of two normal distributions, in two regimes; the truth is Φ(1/√2)."""
    rng, truth, covered = np.random.default_rng(1), float(stats.norm.cdf(1 / np.sqrt(2))), 0
    for _ in range(40):
        a, b = (scores(x=rng.normal(shift, 1, 10), y=rng.normal(shift, 1, 10)) for shift in (1, 0))
        found = improvement_over_regimes(a, b)
        covered += found.low <= truth <= found.high
    assert covered >= 34
    few = improvement_over_regimes(scores(x=[1.0, 2.0]), scores(x=[0.0, 1.0]))
    assert np.isnan(few.low), "too few seeds for a bootstrap"


def test_intervals_hold_at_the_confidence_of_their_context():
    values = pd.Series([0.2, 0.5, 0.4, 0.7, 0.1])
    with confidence(0.99):
        wide, drawn = mean_interval(values), ratio_of_means(values, values + 1)
    assert wide[1:] == pytest.approx(stats.t.interval(0.99, 4, values.mean(), stats.sem(values)))
    usual, once = mean_interval(values), ratio_of_means(values, values + 1)
    assert usual[1:] == pytest.approx(stats.t.interval(0.95, 4, values.mean(), stats.sem(values)))
    assert drawn.low < once.low < once.high < drawn.high


def test_a_correction_within_another_is_for_the_product_of_both_numbers():
    values = pd.Series([0.2, 0.5, 0.4, 0.7, 0.1])
    with corrected_for(3), corrected_for(14):
        found = mean_interval(values)
    with corrected_for(42):
        assert found == pytest.approx(mean_interval(values))


def test_performance_profile_by_hand():
    profile = performance_profile(pd.Series([0.2, 0.5, 0.5, 0.9]), np.array([0.0, 0.2, 0.5, 1.0]))
    assert profile.tolist() == [1.0, 0.75, 0.25, 0.0]


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        ((0.95283, 0.9291, 0.9769), "0.953 [0.929, 0.977]"),
        ((0.0498, -0.0312, 0.1308), "0.05 [-0.03, 0.13]"),
        ((4.63, 1.08, 19.8), "5 [1, 20]"),
        ((1234.5, 1100.0, 1369.0), "1230 [1100, 1370]"),
        ((0.5, 0.5, 0.5), "0.500 [0.500, 0.500]"),
        ((0.5, math.nan, math.nan), "0.500"),
        ((math.nan, math.nan, math.nan), "–"),
    ],
)
def test_an_estimate_has_the_digits_that_its_interval_supports(estimate, text):
    assert Estimate(*estimate).text() == text


def test_a_number_has_three_digits_and_a_name_may_break():
    assert [number(value) for value in (0.95, 12.0, 8, 1234.5, 0.0, math.nan, math.inf)] == [
        *("0.950", "12.0", "8", "1,234", "0", "–", "∞")
    ]
    assert html_cell("ppo_kl <b> [1, 2]") == 'ppo_<wbr>kl &lt;b&gt; <span class="interval">[1, 2]</span>'


def test_area_and_threshold_by_hand():
    x, y = np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 0.5])
    assert area_under_curve(x, y) == pytest.approx((0.5 + 1.5) / 3)
    assert first_at(x, y, 0.25) == 0.25
    assert first_at(x, y, 0.0) == 0.0
    assert np.isnan(first_at(x, y, 1.1))
    assert first_at(x, np.array([0.2, 0.1, 0.3]), 0.2) == 0


def compared(*values, margin=0.02):
    """The result of one pair with these differences."""
    found = Family({("a", "b"): pd.Series(values)}, margin)
    return found.result(found.comparisons[0])


def test_a_pair_is_higher_equivalent_or_without_a_significant_difference():
    assert compared(0.10, 0.11, 0.12) == "a is higher"
    assert compared(-0.10, -0.11, -0.12) == "b is higher"
    assert compared(0.010, 0.011, 0.012) == "a is higher, by less than 0.02"
    assert compared(0.001, -0.002, 0.001) == "equivalent (within ±0.02)"
    least = detectable(pd.Series([0.02, -0.03, 0.01]).std(), 3)
    assert compared(0.02, -0.03, 0.01) == f"no significant difference (detectable: ±{least:.2g})"
    assert compared(0.3) == "no significant difference (1 seed)"


def study(greedy, failed=(), tuned="yes", group=("4", "4"), still=()):
    """Two arms; greedy[arm] is the final accuracy of each seed. The policies of arms in `still` do not move."""
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
                kl = share / 1000 if arm in still else share
                metrics.append((run, "kl/reference_k3_per_sequence", step, kl, arm, seed))
                if step:
                    metrics.append((run, "progress/seconds", step, 10.0 * step * seed, arm, seed))
                    metrics.append((run, "memory/peak_mb", step, 7.0, arm, seed))
    frame = pd.DataFrame(runs)
    failed = frame["run"].isin(failed)
    return Study(
        "methods",
        "which?",
        "parent",
        frame[~failed],
        frame[failed].assign(status="FAILED", outcome="out of memory", failure="out of memory in rollout"),
        parameters(params),
        pd.DataFrame(metrics, columns=["run", "metric", "step", "value", "name", "seed"])
        .sort_values(["run", "metric", "step"])
        .astype({"run": "category", "metric": "category"}),
        pd.DataFrame(),
    )


def parameters(rows):
    return pd.DataFrame(rows, columns=["run", "key", "value"])


def with_params(data, **declared):
    """The study with keys of its file."""
    rows = [(run, f"study.{key}", value) for run in data.runs["run"] for key, value in declared.items()]
    data.params = pd.concat([data.params, parameters(rows)])
    return data


def three_arms():
    """GRPO is 0.1 below PPO in both seeds; RLOO is 0 and 0.2 below."""
    arms = {"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}, "rloo": {1: 0.9, 2: 0.72}}
    return study(arms, group=("4", "4", "4"))


def test_the_league_has_accuracies_costs_and_distances_from_the_best():
    data = three_arms()
    table = methods.table(data).set_index("method")
    assert table.index.tolist() == ["ppo", "grpo", "rloo"]
    distances = table["greedy, difference from ppo [95 %]"].tolist()
    assert distances == ["–", "-0.100 [-0.100, -0.100]", "-0.1 [-1.4, +1.2]"]
    assert table[methods.GREEDY_RESULT].tolist() == ["best greedy mean", "lower", "no significant difference"]
    assert float(table.loc["grpo", "seconds"]) == pytest.approx(30)
    lines = markdown(methods.table(data)).splitlines()
    assert lines[0].startswith("| method")
    assert len(lines) == 5
    text = methods.all_against_one(data)
    assert "Lower than ppo: grpo. Equivalent to it (within ±0.02): none. No significant difference (detectable" in text
    assert "over 2 seeds, and corrected for 3 comparisons (Holm); intervals are not" in text


SAME, APART = {1: 0.9, 2: 0.9005, 3: 0.9}, {1: 0.7, 2: 0.702, 3: 0.699}


@given(st.sets(st.sampled_from(["ppo", "grpo", "rloo"])), st.booleans())
@settings(max_examples=16, deadline=None)
def test_arms_that_did_not_move_are_never_called_equivalent(still, named):
    """PPO and GRPO end alike, RLOO lower, whichever of them move; every text of the page has the same verdict."""
    data = study({"ppo": SAME, "grpo": {1: 0.901, 2: 0.9, 3: 0.9}, "rloo": APART}, group=("4",) * 3, still=still)
    data = with_params(data, **({"baseline": "ppo"} if named else {}))
    pairs = methods.differences(data).query("decoding == 'greedy'")
    results = {row.a + row.b: row.result for row in pairs.itertuples()}
    pair = still & {"ppo", "grpo"}
    result = results.get("ppogrpo") or results["grpoppo"]
    if len(pair) == 2:
        assert result == "neither moved (KL to the start below 0.01 nats per completion)"
    elif pair:
        assert result.startswith(f"{min(pair)} did not move")
    else:
        assert result == "equivalent (within ±0.02)"
    assert all("higher" in text for names, text in results.items() if "rloo" in names), "a difference stays one"
    moved = not still & {"ppo", "grpo"}
    assert ("equivalent" in methods.all_pairs(data) + methods.table(data)[methods.GREEDY_RESULT].to_string()) == moved
    assert ("not both moved" in methods.all_against_one(data)) == (not moved)
    effect = difference("grpo", "ppo")(data)
    assert math.isnan(effect.value) == (still >= {"ppo", "grpo"})


def test_one_seed_of_arms_that_did_not_move_is_named_too():
    data = study({"ppo": {1: 0.9}, "grpo": {1: 0.9}}, still=("ppo", "grpo"))
    assert "neither moved" in methods.verdict(data)


def test_a_baseline_that_the_study_names_is_what_arms_are_compared_with():
    data = with_params(three_arms(), baseline="grpo", margin="0.3")
    assert list(family(data).differences) == [("ppo", "grpo"), ("rloo", "grpo")]
    table = methods.table(data).set_index("method")
    assert table[methods.GREEDY_RESULT].to_dict() == {
        "ppo": "higher",
        "grpo": "baseline",
        "rloo": "no significant difference",
    }
    text = methods.verdict(data)
    assert "Lower than grpo: none. Higher: ppo. Equivalent to it (within ±0.3): none." in text
    assert "corrected for 2 comparisons" in text
    unfinished = with_params(three_arms(), baseline="dapo")
    assert len(family(unfinished).differences) == 3
    assert "dapo, with which the study compares the other arms, has no finished run" in mismatches(unfinished)


def test_a_verdict_on_few_arms_names_the_result_of_every_pair():
    tied = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})
    assert "no significant difference (detectable: ±" in methods.differences(tied)[methods.RESULT][0]
    apart = study({"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}})
    pairs = methods.differences(apart).set_index("decoding")[methods.RESULT]
    assert pairs.to_dict() == {"greedy": "ppo is higher", "sampled": "equivalent (within ±0.02)"}
    assert "ppo − grpo = +0.100 [+0.100, +0.100]: ppo is higher." in methods.verdict(apart)


@pytest.mark.parametrize("one", [["algorithm=grpo"], ["algorithm=grpo", "budget.limit=8"]])
def test_runs_of_one_configuration_share_a_name_however_they_came_to_it(one):
    """One was made longer by `resume=`, the other by its sweep."""
    both = [["algorithm=grpo", "seed=1", "budget.limit=8"], [*one, "seed=2"]]
    runs = pd.DataFrame({"algorithm": "grpo", "config_id": "1", "overrides": [json.dumps(each) for each in both]})
    assert arm_names(runs).tolist() == ["grpo", "grpo"]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({1: 0.3, 2: -0.3}, "no significant difference (2 seeds)"),  # it would have to be larger than 1
        ({1: 0.0, 2: 0.0}, "equivalent (within ±0.02)"),
        ({}, "not compared: no seed in common"),
    ],
)
def test_a_result_claims_no_more_than_shares_and_their_seeds_allow(values, text):
    found = Family({("a", "b"): pd.Series(values, dtype=float)}, 0.02, step=1 / 4096)
    (only,) = found.comparisons
    assert found.result(only) == text
    assert "find a difference of 0 " not in found.note
    assert not any(abs(each) > 1 for each in only.change)


def test_arms_of_one_mean_have_no_best_one():
    tied = study({"ppo": {1: 0.5, 2: 0.7}, "grpo": {1: 0.6, 2: 0.6}})
    assert "best greedy mean" not in set(methods.table(tied)[methods.GREEDY_RESULT])
    assert "-0.0" not in methods.table(tied).to_string().replace("-0.0.", "")


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
    table = rlhf.overoptimisation(data, window=1)
    assert table["true at best"].tolist() == [0.8, 0.8]
    assert table["best update"].tolist() == [3, 3]
    assert table["KL at best"].tolist() == [2, 2]
    assert table["lost"].tolist() == pytest.approx([0.3, 0.3])
    assert "the true reward changes by +0.100 [+0.100, +0.100] from start to end: it rises;" in rlhf.verdict(data, 1)


def test_matched_arms_have_no_mismatch():
    assert mismatches(study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})) == []


def test_unmatched_arms_are_named():
    found = mismatches(study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8}}, ["ppo1"], "untuned", ("4", "8")))
    text = "; ".join(found)
    assert "batch.group_size differs: 4 (ppo); 8 (grpo)" in text
    assert "ppo seed 1 did not finish (out of memory): out of memory in rollout" in text
    assert "ppo has no run with seed 1" in text
    assert "no arm was tuned" in text
    one = study({"ppo": {1: 0.9}, "grpo": {1: 0.8}})
    one.runs.loc[one.runs["name"] == "ppo", "tuned"] = "untuned"
    assert "ppo was not tuned" in mismatches(one)


def test_a_value_that_only_one_arm_has_is_a_difference():
    data = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}})
    extra = [(run, "reward.process.verifier", "1.0") for run in ("grpo1", "grpo2")]
    data.params = pd.concat([data.params, parameters(extra)])
    assert mismatches(data) == ["reward.process.verifier differs: 1.0 (grpo); none (ppo)"]


def test_what_a_sweep_varies_and_what_a_seed_draws_is_no_mismatch():
    data = study({"ppo": {1: 0.9, 2: 0.7}, "grpo": {1: 0.8, 2: 0.82}}, group=("4", "8"))
    sizes = {"ppo": "4", "grpo": "8"}
    data.runs["overrides"] = [json.dumps([f"batch.group_size={sizes[name]}"]) for name in data.runs["name"]]
    seeds = [(run, "sft.seed", run[-1]) for run in data.runs["run"]]
    data.params = pd.concat([data.params, parameters(seeds)])
    data.runs["start"] = data.runs["seed"].astype(str)
    assert varied(data.runs) == ["batch.group_size"]
    assert mismatches(data) == []
    declared = [(run, "study.varies", "['reward']") for run in data.runs["run"]]
    declared += [(run, "reward.process.verifier", "1.0") for run in ("ppo1", "ppo2")]
    data.params = pd.concat([data.params, parameters(declared)])
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


@pytest.mark.parametrize("arms", [2, MANY + 1])
def test_a_figure_shows_the_arms_that_logged_a_metric(arms):
    """Arms differ in their rewards, so in the parts of them that they log."""
    names = [f"arm{number}" for number in range(arms)]
    data = study({name: {1: 0.9, 2: 0.8} for name in names}, group=["4"] * arms)
    own = data.metrics[data.metrics["metric"] == "progress/seconds"]
    parts = [
        own[own["name"] == name].assign(metric=f"reward/term_{part}")
        for part, having in {"first": names[:1], "second": names[1:]}.items()
        for name in having
    ]
    metrics = pd.concat([data.metrics, *parts]).sort_values(["run", "metric", "step"])
    data = dataclasses.replace(data, metrics=metrics.astype({"run": "category", "metric": "category"}))
    if arms <= MANY:
        assert "Panels: first, second." in (shown := plot_terms(data).get_label())
        assert f"Compared: {', '.join(names)}." in shown
    assert plot_curves(data, "reward/term_first", "First part", "score").get_label()
    with pytest.raises(ValueError, match="no run logged reward/term_third"):
        plot_curves(data, "reward/term_third", "Third part", "score")


def test_a_method_keeps_its_colour_and_arms_have_different_ones():
    assert colours(["grpo", "new"])["grpo"] == colours(["ppo", "grpo"])["grpo"]
    assert len(set(colours(["ppo", "ppo_kl", "grpo", *map(str, range(10))]).values())) == 13


def test_an_arm_without_a_finished_run_is_in_the_league_with_its_outcome():
    data = study({"ppo": {1: 0.9, 2: 0.92}, "grpo": {1: 0.8, 2: 0.82}}, ["grpo1", "grpo2"])
    assert data.arms == ["ppo"]
    table = methods.table(data)[["method", FINAL_ACCURACY, methods.GREEDY_RESULT]]
    assert table.values.tolist()[1] == ["grpo", "–", "out of memory"]
    assert methods.verdict(data)


def test_values_that_the_seed_draws_are_no_difference_between_arms():
    """Two jobs at a time end in any order: an arm's first run need not be of the first seed."""
    data = study({"ppo": {2: 0.9, 1: 0.9}, "grpo": {1: 0.8, 2: 0.8}})
    drawn = [(run, "sft.seed", str(seed)) for run, seed in zip(data.runs["run"], data.runs["seed"], strict=True)]
    data.params = pd.concat([data.params, parameters(drawn)], ignore_index=True)
    assert config_diff(data).index.tolist() == ["algorithm.optimizer.lr"]


def test_the_configuration_of_many_arms_lists_what_is_uncommon():
    arms = {name: {1: 0.9} for name in ("ppo", "grpo", "rloo", "dapo")}
    table = configuration(study(arms, group=("4", "4", "4", "4"))).set_index("arm")
    assert table.iloc[:, 0].to_dict() == {"ppo": "–", "grpo": "algorithm.optimizer.lr 1", "rloo": "–", "dapo": "–"}


def test_unequal_tuning_is_named():
    data = study({"ppo": {1: 0.9}, "ppo_kl": {1: 0.9}, "grpo": {1: 0.8}}, group=("4", "4", "4"))
    trials = [(run, "tuned.trials", "13" if "kl" in run else "3") for run in data.runs["run"]]
    data.params = pd.concat([data.params, parameters(trials)])
    assert mismatches(data) == ["the arms had unequal tuning: 13 trials (ppo_kl); 3 trials (the others)"]
    more = [(run, "tuned.seeds", "[100, 101]" if "kl" in run else "[100]") for run in data.runs["run"]]
    more += [
        (run, "tuned.command", "bakeoff -m algorithm=ppo seed=100" + " budget.limit=40960" * ("kl" in run))
        for run in data.runs["run"]
    ]
    data.params = pd.concat([data.params, parameters(more)])
    assert mismatches(data)[1:] == [
        "the arms had unequal tuning: 2 tuning seeds (ppo_kl); 1 tuning seed (the others)",
        "the arms had unequal tuning: a tuning budget of 40960 (ppo_kl); a tuning budget of the protocol's (the "
        "others)",
    ]
    data.params = data.params[~data.params["key"].isin(["tuned.seeds", "tuned.command"])]
    data.params = data.params[data.params["key"] != "tuned.trials"]
    assert mismatches(data) == [], "runs of an earlier version logged no trials"


def test_an_arm_is_named_by_the_sweep_or_its_algorithm_and_by_what_varies():
    runs = pd.DataFrame(
        {
            "algorithm": ["ppo", "ppo", "grpo"],
            "config_id": ["12345", "23456", "34567"],
            "overrides": [
                json.dumps(each)
                for each in (
                    ["arm=clip_0_1", "seed=1", "batch.group_size=2", "study.margin=0.1"],
                    ["arm=clip_0_1", "seed=1", "batch.group_size=2", "processes=2"],
                    ["algorithm=grpo", "seed=2", "batch.group_size=4"],
                )
            ],
        }
    )
    assert arm_names(runs).tolist() == ["clip_0_1 G=2 1234", "clip_0_1 G=2 2345", "grpo G=4"]


def test_unequal_steps_a_rollout_are_named():
    """An optimiser without minibatches takes one step."""
    data = study({"ppo": {1: 0.9}, "ppo_kl": {1: 0.9}, "grpo": {1: 0.8}}, group=("4", "4", "4"))
    steps = {"ppo": ("2", "4"), "ppo_kl": ("1", "8")}
    rows = [
        (f"{arm}1", f"algorithm.optimizer.{key}", value)
        for arm, values in steps.items()
        for key, value in zip(("epochs", "minibatches"), values, strict=True)
    ]
    data.params = pd.concat([data.params, parameters(rows)])
    assert mismatches(data) == ["optimiser steps a rollout differ: 1 (grpo); 8 (the others)"]


def with_metrics(data, **series):
    """The study with a metric's values at updates 1, 2, … of every run of an arm."""
    rows = [
        (f"{arm}{seed}", metric.replace("__", "/"), step, value, arm, seed)
        for metric, arms in series.items()
        for arm, values in arms.items()
        for seed in data.runs.loc[data.runs["name"] == arm, "seed"]
        for step, value in enumerate(values, start=1)
    ]
    every = pd.concat(
        [data.metrics.astype({"run": str, "metric": str}), pd.DataFrame(rows, columns=data.metrics.columns)]
    )
    every = every.sort_values(["run", "metric", "step"]).astype({"run": "category", "metric": "category"})
    return dataclasses.replace(data, metrics=every)


def test_what_is_idle_is_named():
    """A step that is refused, a direction that is none, a β that has died, a clip that never binds: each has a rate."""
    data = study({"trpo": {1: 0.9, 2: 0.9}, "ppo_kl": {1: 0.8, 2: 0.8}}, group=("4", "4"))
    assert idle(data) == []
    ailing = with_metrics(
        data,
        policy__cg_residual={"trpo": [2.0, 2.5, 2.1, 2.6]},
        policy__accepted={"trpo": [1.0, 0.0, 0.0, 1.0]},
        kl__beta_behaviour={"ppo_kl": [1.0, 0.1, 0.001, 1e-9]},
        policy__clip_fraction={"trpo": [0.0] * 4, "ppo_kl": [0.0, 0.0004, 0.0002, 0.0]},
    )
    clip = [(run, "algorithm.objective.epsilon_low", "0.2") for run in ("ppo_kl1", "ppo_kl2")]
    ailing.params = pd.concat([ailing.params, parameters(clip)])
    found = idle(ailing)
    assert len(found) == 4, "TRPO has no clip, which cannot idle"
    for part in ("trpo leaves 2.3 of", "trpo takes no step in 50 %", "ppo_kl is off in 50 %", "ppo_kl never binds"):
        assert any(part in sentence for sentence in found), part
    beyond = with_metrics(data, kl__beta_behaviour={"ppo_kl": [1.0, 100.0, 10_000.0, 1e6]})
    assert [sentence.split(":")[0] for sentence in idle(beyond)] == ["the KL of ppo_kl stays above its target"]
    late = "ppo_kl never renews its reference: that is due after {} updates, and its runs have {}"
    for due, said in (("4", []), ("50", [late.format(50, 4)])):
        renewed = with_metrics(data, reward__mean={"ppo_kl": [0.1, 0.2, 0.3, 0.4]})
        updates = [(run, "algorithm.kl_to_reference.iteration_updates", due) for run in ("ppo_kl1", "ppo_kl2")]
        renewed.params = pd.concat([renewed.params, parameters(updates)])
        assert idle(renewed) == said
    well = with_metrics(
        data,
        policy__cg_residual={"trpo": [0.1, 0.3]},
        policy__accepted={"trpo": [1.0] * 19 + [0.0]},
        kl__beta_behaviour={"ppo_kl": [1.0, 0.5, 2.0]},
        policy__clip_fraction={"ppo_kl": [0.0, 0.01]},
    )
    well.params = pd.concat([well.params, parameters(clip)])
    assert idle(well) == []


def test_per_seed_numbers_are_in_the_order_of_the_seeds():
    data = study({"ppo": {3: 0.93, 1: 0.9512345, 2: 0.9}, "grpo": {1: 0.8, 3: 0.82}})
    table = per_seed(data)
    assert table.columns.tolist() == ["method", "decoding", "seed 1", "seed 2", "seed 3"]
    assert table.values.tolist()[0] == ["ppo", "greedy", "0.9512", "0.9000", "0.9300"]
    assert table.values.tolist()[1:] == [
        ["grpo", "greedy", "0.8000", "–", "0.8200"],
        ["ppo", "sampled", "0.1000", "0.1000", "0.1000"],
        ["grpo", "sampled", "0.1000", "–", "0.1000"],
    ]


def test_a_difference_to_detect_names_the_seeds_that_are_missing():
    """Paired differences deviate by 0.0089: 0.01 takes nine seeds. Seeds that tuned are none of them."""
    spread = np.array([-1, 0, 1]) * 0.0089
    data = study(
        {"ppo": {s: 0.9 + d for s, d in zip((1, 2, 3), spread, strict=True)}, "grpo": {1: 0.9, 2: 0.9, 3: 0.9}}
    )
    data = with_params(data, tuning_seeds="[5]")
    data.command = "bakeoff sweeps=methods seed=1,2,3 budget.limit=9 hydra.sweep.dir=/some/where"
    text = detect(data, 0.01)
    assert "needs 9 seeds per arm" in text
    assert text.endswith("type: bakeoff sweeps=methods budget.limit=9 seed=4,6,7,8,9,10 hydra.sweep.dir=/some/where")
    assert detect(data, 0.5).endswith("the study has 3. These suffice.")
    data.command += "\nbakeoff sweeps=methods algorithm=rloo hydra.sweep.dir=/some/where"
    assert detect(data, 0.01).endswith(
        "To add the missing ones, type:\n"
        "bakeoff sweeps=methods budget.limit=9 seed=4,6,7,8,9,10 hydra.sweep.dir=/some/where\n"
        "bakeoff sweeps=methods algorithm=rloo seed=4,6,7,8,9,10 hydra.sweep.dir=/some/where"
    )
    rates = [(run, "lr_factors", "[0.5, 1.0, 2.0, 4.0]") for run in data.runs["run"]]
    with_rates = dataclasses.replace(data, params=pd.concat([data.params, parameters(rates)]))
    assert "needs 12 seeds per arm, as many of each of 4 learning rates" in detect(with_rates, 0.01)
    data.command = ""
    assert "name it: bakeoff sweeps=methods seed=4,6,7,8,9,10 hydra.sweep.dir=…" in detect(data, 0.01)
    for refused, sentence in ((1e-6, "more than 10000 seeds"), (0.01, "two arms and two seeds")):
        with pytest.raises(UserError, match=sentence):
            detect(data if refused < 0.01 else study({"ppo": {1: 0.9, 2: 0.8}}, group=("4",)), refused)


def test_a_seed_that_one_arm_lacks_is_among_the_missing_ones():
    spread = np.array([-1, 0, 1]) * 0.0089
    arms = {
        "ppo": {s: 0.9 + d for s, d in zip((1, 2, 4), spread, strict=True)},
        "grpo": {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.9},
    }
    text = detect(study(arms), 0.01)
    assert "the study has 3." in text
    assert "seed=3,5,6,7,8,9 " in text


def test_seeds_that_do_not_differ_say_nothing_of_the_number_to_detect():
    with pytest.raises(UserError, match="no two arms whose accuracies differ from seed to seed"):
        detect(study({"ppo": {1: 0.5, 2: 0.5}, "grpo": {1: 0.5, 2: 0.5}}), 0.01)
