"""Every study's page from a store whose answers are known: the sentences, the frames, and the notebooks themselves."""

import dataclasses
import html
import math
import re

import nbformat
import numpy as np
import pandas as pd
import pytest

from bakeoff.mlflow_store import Tracking
from bakeoff.paths import study_names
from bakeoff.report import across_seeds, claims
from bakeoff.report.claim import Claim
from bakeoff.report.matching import matched
from bakeoff.report.page import all_claims, page_of
from bakeoff.report.pages import (
    advantage_quality,
    clip_vs_adaptive,
    gradient_quality,
    kl_frontier,
    sample_reuse,
    sampling,
    tuning,
    variance,
)
from bakeoff.report.statistics import Estimate, holm, mean_interval, paired_p
from bakeoff.report.store import load_study
from bakeoff.report.study import provenance, read_study, write_study
from bakeoff.report.tables import by_seed, interval_note
from benchmarks.synthetic import synthetic_store
from tests.commands import store_of

pytestmark = pytest.mark.xdist_group("pages")  # one worker: the store is shared
SEEDS = (1, 2, 3)
STEPS = (0, 5, 10)
# the number of figures that each page has at least
STUDIES = {
    "kl_frontier": 3,
    "sample_reuse": 2,
    "clip_vs_adaptive": 2,
    "gradient_quality": 1,
    "variance": 1,
    "sampling": 1,
    "advantage_quality": 2,
    "tuning": 1,
}
MEMORY = ("rollout", "actor_update", "critic_update")


def run(final, kl=1.0, start=0.2, seconds=10.0, rollout=0.25, ess=1.0, behaviour=0.01, extra=None):
    """The metrics of a run whose accuracies go on a straight line from start to final in ten updates of 256."""
    values = {
        "eval/greedy_accuracy": lambda share: start + share * (final - start),
        "eval/sampled_accuracy": lambda share: start + share * (final - start),
        "kl/reference_k3_per_sequence": lambda share: kl * share + 1e-6,
        "kl/behaviour_k3_per_token": lambda share: behaviour,
        "kl/beta_behaviour": lambda share: 1.0,
        "reward/mean": lambda share: share,
        "reward/true": lambda share: share,
        "reward/term_learned": lambda share: 2 * share,
        "policy/effective_sample_size": lambda share: ess,
        "progress/sequences": lambda share: 2560 * share,
        "progress/tokens": lambda share: 25600 * share,
        "progress/seconds": lambda share: seconds * share,
        "time/rollout": lambda share: rollout,
        "time/actor_update": lambda share: 1 - rollout,
        "memory/peak_mb": lambda share: 8.0,
    }
    series = {name: {step: value(step / 10) for step in STEPS} for name, value in values.items()}
    for phase in MEMORY:
        series[f"memory/{phase}_mb"] = {1: 8.0}
        series[f"memory/{phase}/actor_parameters_mb"] = {1: 5.0}
        series[f"memory/{phase}/actor_activations_mb"] = {1: 3.0}
    for role in ("actor", "reference"):
        series[f"memory/weights_{role}_mb"] = {1: 2.0}
    return series | {name: {0: value} for name, value in (extra or {}).items()}


def params(**given):
    return {"study.tuning_seeds": "[100]"} | {key.replace("__", "."): str(value) for key, value in given.items()}


def filled_store(path):
    """One store with a tiny sweep of each kind; accuracies differ between seeds by a thousandth, alike in all arms."""

    def sweep(name, arms, series, seeds=SEEDS):
        synthetic_store(path, name, {arm: params() | extra for arm, extra in arms.items()}, seeds, series)

    finals = {"ppo": 0.95, "ppo_kl": 0.93, "grpo": 0.94}
    sweep(
        "methods",
        {name: {"choice/algorithm": name} for name in finals},
        lambda arm, seed: run(finals[arm] + seed / 1000),
    )
    kls = {0.01: 1.0, 1.0: 0.1}
    places = {f"{place} {beta}": (place, beta) for place in ("in_reward", "in_loss") for beta in kls}
    sweep(
        "kl_frontier",
        {name: {kl_frontier.PLACE: place, kl_frontier.BETA: str(beta)} for name, (place, beta) in places.items()},
        lambda arm, seed: run(
            (0.9 if "reward" in arm else 0.85) - (0.1 if arm.endswith("1.0") else 0) + seed / 1000,
            kls[places[arm][1]],
        ),
    )
    sweep(
        "sample_reuse",
        {
            f"{objective} {epochs}": {sample_reuse.OBJECTIVE: objective, sample_reuse.EPOCHS: str(epochs)}
            for objective in ("ratio", "clip")
            for epochs in (1, 2, 4, 8)
        },
        lambda arm, seed: run(
            {"1": 0.6, "2": 0.8, "4": 1.0, "8": 0.7}[arm[-1]] - seed / 1000,
            seconds=10.0 * int(arm[-1]),
            ess=1 - int(arm[-1]) / 100,
            extra={"time/actor_update": 0.75 * int(arm[-1])},
        ),
        seeds=(1, 2, 3, 4, 5),
    )
    sweep(
        "sampling",
        {f"digits_{digits}": {sampling.DIGITS: str(digits)} for digits in (5, 60)},
        lambda arm, seed: run(
            0.9, rollout=(0.3 if arm == "digits_5" else 0.6) + seed / 1000, extra={"length/mean": int(arm[7:]) + 1}
        ),
    )
    ways = {"clip_0_1": ("ppo", 0.1), "clip_0_2": ("ppo", 0.2)}
    ways |= {"adaptive_0_002": ("ppo_kl", 0.002), "adaptive_0_006": ("ppo_kl", 0.006)}
    ways |= {"penalty_0_1": ("ppo_penalty", 0.1), "penalty_1": ("ppo_penalty", 1.0)}
    ends = dict(zip(ways, (0.9, 0.95, 0.7, 0.94, 0.93, 0.8), strict=True))
    sweep(
        "clip_vs_adaptive",
        {
            name: {"choice/algorithm": algorithm, clip_vs_adaptive.WAYS[algorithm][1]: str(strength)}
            for name, (algorithm, strength) in ways.items()
        },
        lambda arm, seed: run(
            ends[arm] + (0.001 * seed if arm in ("clip_0_2", "penalty_1") else 0), behaviour=1.2 * ways[arm][1]
        ),
    )

    def gradient(arm, seed):
        """A baseline halves the variance, and lowers it to a tenth where rewards are positive."""
        variances = {"reinforce": 8.0, "none_plain": 8.0, "none_offset": 40.0}
        return {
            metric: {0: value + seed / 1000}
            for metric, value in (
                ("gradient/cosine", 0.4),
                ("gradient/bias", 0.1),
                ("gradient/alignment", 0.9 if arm == "reinforce" else 1.0),
                ("gradient/snr_per_1000_tokens", 0.1 if arm == "reinforce" else 0.3),
                ("gradient/snr_per_second", 1.0),
                ("gradient/relative_variance", variances.get(arm, 4.0)),
                ("gradient/norm", 1.0),
            )
        }

    sweep("gradient_quality", {"reinforce": {}, "reinforce_baseline": {}}, gradient)
    sweep("variance", {f"{name}_{regime}": {} for name in ("none", "mean") for regime in ("plain", "offset")}, gradient)
    sweep(
        "advantage_quality",
        {"baseline_critic": {}, "baseline_group_mean": {}},
        lambda arm, seed: {
            "advantage/correlation": {0: (0.3 if arm == "baseline_critic" else 0.5) + seed / 1000},
            "advantage/correlation_ceiling": {0: 0.9},
            "advantage/rank_accuracy": {0: 0.6},
            "advantage/bias": {0: 0.0},
            "advantage/correlation_by_position": {0: 0.1, 1: 0.2},
            "advantage/rank_accuracy_by_position": {0: 0.6, 1: math.nan},
        },
    )
    for method in ("ppo", "grpo"):
        rates = {"a": 1e-4, "b": 1e-3}
        synthetic_store(
            path,
            "tuning",
            {
                f"{method} {name}": params() | {"choice/algorithm": method, tuning.RATE: str(rate)}
                for name, rate in rates.items()
            },
            (100,),
            lambda arm, seed: run(0.9 if arm.endswith("a") else 0.8),
        )
    return Tracking(uri=f"sqlite:///{path}")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return filled_store(store_of(tmp_path_factory.mktemp("store")))


def test_a_store_is_read_whole_and_typed(store):
    study = load_study("methods", store)
    per_run = sum(len(values) for values in run(0.9).values())
    assert len(study.metrics) == 9 * per_run
    assert isinstance(study.metrics["metric"].dtype, pd.CategoricalDtype)
    assert study.arms == ["ppo", "ppo_kl", "grpo"]
    assert by_seed(study, "eval/greedy_accuracy", "ppo").to_dict() == pytest.approx({1: 0.951, 2: 0.952, 3: 0.953})
    assert provenance(study) == "3 seeds (few); tuned on seed 100"
    more = dataclasses.replace(study, params=study.params.replace({"value": {"[100]": "[100, 101]"}}))
    assert provenance(more) == "3 seeds (few); tuned on seeds 100, 101"
    assert "<strong>Matched:</strong>" in matched(study)
    nan = load_study("advantage_quality", store).metrics.query("metric == 'advantage/rank_accuracy_by_position'")
    assert nan["value"].isna().sum() == 6


def test_a_study_survives_its_folder(store, tmp_path):
    """What a notebook reads is what the report read from the store; a config_id of digits stays text."""
    study = load_study("tuning", store, sweeps=2)
    study.runs.loc[0, "config_id"] = "1234e567"
    write_study(study, tmp_path)
    again = read_study(tmp_path)
    for frame in ("runs", "params", "metrics", "completions"):
        read, written = getattr(again, frame), getattr(study, frame)
        pd.testing.assert_frame_equal(read, written, check_dtype=False, check_categorical=False)
    assert again.runs["config_id"][0] == "1234e567"
    assert (again.name, again.question, again.run, again.arms) == (study.name, study.question, study.run, study.arms)


def test_a_threshold_is_half_way_to_one_whatever_arms_there_are(store):
    """The start is 0.2, so the threshold is 0.6, which PPO of seed 2 reaches between 0.2 and 0.576."""
    study = load_study("methods", store)
    assert across_seeds.threshold(study) == pytest.approx(0.6)
    assert across_seeds.threshold(load_study("methods", store, where="name == 'grpo'")) == pytest.approx(0.6)
    table = across_seeds.aggregates(study).set_index("method")
    assert "IQM [95 %]" not in table, "of three seeds"
    assert float(table.loc["ppo", "mean height of the curve"]) == pytest.approx((0.2 + 0.952) / 2)
    assert table.loc["ppo", "runs that reach 0.600"] == "3 of 3"
    share = np.mean([0.4 / (0.95 + seed / 1000 - 0.2) for seed in SEEDS])
    assert float(table.loc["ppo", "completions until then, or in all"]) == pytest.approx(2560 * share, abs=1)
    assert float(table.loc["ppo", "seconds until then, or in all"]) == pytest.approx(10 * share, abs=0.01)
    chances = across_seeds.improvement(study).set_index("P(row > column)")
    assert chances.loc["ppo", "grpo"] == 1
    assert chances.loc["ppo", "ppo"] == 0.5
    fits = across_seeds.fits(study)
    assert fits.iloc[0].tolist() == ["ppo", "–", "–", "–"], "three points"
    assert interval_note(fits).endswith(
        "intervals: of asymptote, completions to the middle and steepness a percentile bootstrap over seeds."
    )


def test_a_run_that_never_reaches_the_threshold_counts_with_its_budget(store):
    study = load_study("methods", store)
    assert across_seeds.to_threshold(study, "sequences", 0.942)["ppo_kl"].isna().all()
    assert across_seeds.restricted(study, "sequences", 0.942)["ppo_kl"].tolist() == [2560] * 3
    assert across_seeds.reached(study, 0.9415)["reached"].to_dict() == {"ppo": 3, "ppo_kl": 0, "grpo": 2}


def test_places_of_the_penalty_are_compared_at_equal_kl(store):
    """Both places span 0.1 to 1 nats; in between in_reward is 0.05 above, in every seed."""
    study = load_study("kl_frontier", store)
    table = kl_frontier.at_equal_kl(study)
    assert table["kl"].tolist() == pytest.approx([math.sqrt(0.1)] * 3, rel=1e-4)
    assert table["difference"].tolist() == pytest.approx([0.05] * 3)
    assert "in_reward − in_loss is +0.050" in kl_frontier.verdict(study)
    assert "in_reward is higher" in kl_frontier.verdict(study)


def test_reuse_is_compared_by_restricted_means_and_its_time_by_a_break_even_share(store):
    """One epoch ends at 0.6 and just misses the threshold, 0.6; four end at 1 and reach it half way: r is a half.

    A step of four epochs takes four times as long here, k is 4, so that the break-even share is (2 − 1)/(0.5 · 3).
    """
    study = load_study("sample_reuse", store)
    table = sample_reuse.runs_by_epochs(study)
    own = table[(table["objective"] == "clip") & (table["seed"] == 1)].set_index("epochs")
    assert own.loc[4, "sequences"] == pytest.approx(2560 * 0.4 / (0.999 - 0.2))
    assert own.loc[1, "sequences"] == 2560
    assert own["reached"].to_dict() == {1: False, 2: True, 4: True, 8: True}
    r = sample_reuse.saved(study, "sequences", "clip", 4)
    assert r.value == pytest.approx(0.5, abs=0.003)
    assert r.low < r.value < r.high
    assert sample_reuse.break_even(study, "clip", 4).value == pytest.approx((4 * r.value - 1) / (3 * r.value))
    three = load_study("sample_reuse", store, where="seed < 4")
    assert np.isnan(sample_reuse.break_even(three, "clip", 4).low), "three seeds are no sample to draw from"
    text = sample_reuse.verdict(study)
    assert "accuracy is highest with 4 epochs (0.997; with 1: 0.597, with 8: 0.697)" in text
    assert "5 of 5 with 4 and 0 of 5 with 1 reach 0.600" in text
    assert "where sampling and scoring take more than 0.66" in text


def test_the_share_of_sampling_is_stated_by_the_length_of_an_answer(store):
    study = load_study("sampling", store)
    assert sampling.table(study)["mean tokens of a completion"].tolist() == ["6.00", "61.0"]
    assert "0.3020 [0.2995, 0.3045] of the training time with completions of 6 tokens" in sampling.verdict(study)
    share, growth = (claim.of(study) for claim in sampling.CLAIMS)
    assert share.value == pytest.approx(0.602, abs=1e-3)
    assert growth.value == pytest.approx(0.3)
    assert sampling.CLAIMS[1].verdict(growth) == "supported"


def test_bounds_are_compared_at_their_middle_strength_and_the_best_with_the_worst(store):
    study = load_study("clip_vs_adaptive", store)
    spread = clip_vs_adaptive.spreads(study)
    assert spread["adaptive penalty"].tolist() == pytest.approx([0.24] * 3)
    assert spread["clip"].tolist() == pytest.approx([0.051, 0.052, 0.053])
    assert clip_vs_adaptive.target_ratios(study)["ratio"].tolist() == pytest.approx([1.2] * 6)
    text = clip_vs_adaptive.verdict(study)
    assert "clip 0.952, adaptive penalty 0.940, fixed penalty 0.802" in text
    assert "Clip − adaptive penalty: +0.012" in text
    assert "clip is higher" in text


def test_a_strength_at_which_runs_diverged_leaves_the_cost_of_a_wrong_one_unknown(store):
    study = load_study("clip_vs_adaptive", store)
    lost = study.runs["name"] == study.runs["name"][study.runs["algorithm"] == "ppo_kl"].iloc[0]
    study = dataclasses.replace(study, runs=study.runs[~lost], unfinished=study.runs[lost])
    spread = clip_vs_adaptive.spreads(study)
    assert spread["adaptive penalty"].empty
    assert len(spread["clip"]) == 3
    assert "adaptive penalty unknown, as runs at one did not finish" in clip_vs_adaptive.verdict(study)
    hard_to_pick = clip_vs_adaptive.CLAIMS[0]
    assert hard_to_pick.verdict(hard_to_pick.of(study)) == "undecided"


def test_a_bound_whose_middle_strength_has_no_run_is_not_compared_at_another(store):
    study = load_study("clip_vs_adaptive", store)
    lost = study.runs["name"].str.endswith("penalty_1")
    study = dataclasses.replace(study, runs=study.runs[~lost], unfinished=study.runs[lost])
    assert list(clip_vs_adaptive.at_middle(study)) == ["clip", "adaptive penalty"]
    assert "fixed penalty:" not in clip_vs_adaptive.verdict(study)


def test_a_verdict_on_quality_names_best_lower_and_biased_methods(store):
    text = gradient_quality.verdict(load_study("gradient_quality", store))
    assert "The gradient of reinforce_baseline has the highest signal-to-noise ratio" in text
    assert "reinforce 0.338 [0.332, 0.343]" in text
    assert "below one): reinforce (0.9020 [" in text
    assert "reinforce_baseline ÷ reinforce: 0.500 (0.500 to 0.500 over the starts)" in text
    assert "reinforce_baseline raises it at 0 of 3 starts." in text
    study = load_study("advantage_quality", store)
    assert "baseline_group_mean 0.5020 [0.4995, 0.5045], baseline_critic 0.3020" in (
        text := advantage_quality.verdict(study)
    )
    assert "Significantly lower than baseline_group_mean: baseline_critic." in text
    assert len(advantage_quality.by_position(study, "advantage/rank_accuracy")) == 6, "NaN is left out"


def test_the_variance_of_a_gradient_is_compared_in_each_regime(store):
    study = load_study("variance", store)
    plain, offset = (claim.of(study) for claim in variance.CLAIMS)
    assert plain.value == pytest.approx(0.5, abs=0.01)
    assert offset.value == pytest.approx(0.1, abs=0.01)
    text = variance.verdict(study)
    assert "none_offset: 0.100 (0.100 to 0.100 over the starts); mean_offset raises it at 0 of 3 starts." in text
    one = load_study("variance", store, where="name == 'none_plain'")
    assert variance.verdict(one) == "Starts are different policies."


def test_tuning_reads_several_sweeps_as_one(store):
    assert len(load_study("tuning", store).runs) == 2
    study = load_study("tuning", store, sweeps=2)
    found = tuning.search(study).set_index("method")
    assert found["trials"].to_dict() == {"ppo": 2, "grpo": 2}
    assert found.loc["ppo", "lr"] == 1e-4
    assert "ppo 1.0e-04 (0.900, 2 trials)" in tuning.verdict(study)


def test_claims_have_verdicts_by_their_rules(store):
    names = {study for study, _ in all_claims()} & {"methods", *STUDIES}
    table = claims.verdicts([load_study(name, store) for name in names])
    assert table["step"].str.split().str[0].astype(int).is_monotonic_increasing
    rows = table.set_index("effect")
    variance = rows.loc["trace of the covariance, batch mean ÷ none"]
    assert variance["value"] == pytest.approx(0.5, rel=1e-2)
    assert variance["low"] < variance["value"] < variance["high"], "the range over the starts"
    assert variance["verdict"] == "supported"
    assert rows.loc["final sampled accuracy, GRPO − PPO", "value"] == pytest.approx(-0.01)
    assert rows.loc["final sampled accuracy, GRPO − PPO", "alone"] == "supported", "above the margin of -0.02"
    assert rows.loc["correlation with the truth, critic − group mean", "alone"] == "supported"
    miss = "factor by which the median KL misses its target of 0.006 nats per token"
    assert rows.loc[miss, "value"] == pytest.approx(1.2)
    assert rows.loc["weights of the four models ÷ the actor's", "verdict"] == "not tested: bakeoff sweeps=rlhf"
    assert rows.loc["share of PPO's largest peak that GRPO saves", "verdict"] == "undecided", "zero is its bar"
    reuse = {effect: rows.loc[effect, "alone"] for effect in rows.index if "epochs" in effect}
    assert reuse == {
        "completions until the threshold or in all, 4 epochs ÷ 1, clip": "supported",
        "completions until the threshold or in all, 4 epochs ÷ 1, no clip": "supported",
        "break-even share of sampling and scoring in an update with one epoch, 4 epochs, clip": "measured",
        "effective sample size, 8 epochs − 1, no clip": "supported",
        "final sampled accuracy, 8 epochs − 2, no clip": "supported",
        "final sampled accuracy at 8 epochs, clip − no clip": "undecided",
    }
    critic = rows.loc["held for the critic ÷ held for the actor, in their updates", "verdict"]
    assert critic == "not tested: ('critic', 'critic_update') is missing in methods"
    text = claims.claims_verdict(table)
    assert f"The verdicts on {table['corrected'].sum()} are by intervals over seeds, corrected for their number" in text
    assert "The verdicts on 2 are by the range over starts." in text


def test_claims_are_decided_together_by_holms_method():
    """The verdicts are those of corrected p-values, of effects of several sizes, seeds and estimators."""
    for seed in range(20):
        rng, tested, p = np.random.default_rng(seed), {}, []
        for n in range(8):
            values = pd.Series(rng.normal(rng.choice([0.0, 0.4, 1.2]), 1, rng.integers(3, 12)))
            tested[n] = Claim("1", "text", "effect", lambda study, own=values: mean_interval(own), above=0.0), None
            p.append(paired_p(values))
        assert claims.decided(tested) == {n for n, each in enumerate(holm(p)) if each < 0.05}


def test_a_claim_that_only_its_own_interval_decides_says_so():
    rows = {
        "step": "1",
        "claim": "text",
        "study": "s",
        "effect": "e",
        "value": 1.0,
        "low": 0.1,
        "high": 1.9,
        "bar": 0.0,
    }
    rows |= {"seeds": 3, "rule": "interval above 0", "verdict": "undecided", "alone": "supported", "corrected": True}
    table = pd.DataFrame([rows])
    (cell,) = claims.claims_table(table)["verdict (supported if)"]
    assert cell == "undecided (interval above 0; supported without the correction)"
    assert "by its own interval 1 undecided claim would be decided" in claims.claims_verdict(table)


@pytest.mark.parametrize(
    ("side", "low", "high", "verdict"),
    [
        ("above", 0.6, 0.9, "supported"),
        ("above", 0.1, 0.4, "not supported"),
        ("above", 0.4, 0.6, "undecided"),
        ("below", 0.1, 0.4, "supported"),
        ("below", 0.6, 0.9, "not supported"),
        ("above", math.nan, math.nan, "undecided"),
    ],
)
def test_a_claim_is_decided_by_an_interval_on_one_side_of_its_bar(side, low, high, verdict):
    claim = Claim("1", "text", "effect", lambda study: Estimate(0, 0, 0), **{side: 0.5})
    assert claim.verdict(Estimate(low, low, high)) == verdict


def test_a_claim_that_cannot_fail_is_marked_and_a_number_without_a_bar_has_no_verdict():
    about = ("1", "text", "effect", lambda study: Estimate(0, 0, 0))
    built = Claim(*about, above=0.5, by_construction=True)
    assert built.verdict(Estimate(1, 0.9, 1.1)) == "by construction"
    assert built.verdict(Estimate(0, -0.1, 0.1)) == "not supported", "the code does not do what it should"
    assert (Claim(*about).verdict(Estimate(1, 0.9, 1.1)), Claim(*about).rule) == ("measured", "")


def test_where_selects_runs_and_refuses_what_selects_none(store, report, monkeypatch):
    part = load_study("methods", store, where="algorithm != 'ppo' and seed == 1")
    assert part.arms == ["ppo_kl", "grpo"]
    assert set(part.metrics["seed"]) == {1}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    refused = report("methods", "--where", "seeds == 1")
    assert refused.returncode == 2
    assert "where is 'seeds == 1', which is invalid" in refused.stderr
    nothing = report("methods", "--where", "seed == 9")
    assert "which no finished run satisfies; the names are ppo, ppo_kl, grpo" in nothing.stderr


def test_every_sweep_has_a_page_and_a_notebook():
    for name in study_names():
        assert page_of(name).notebook.is_file()


def test_the_report_of_all_studies_has_every_page(report, store, tmp_path, monkeypatch):
    """The command that makes every page, as a user calls it: each has its figures and no traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    made = report("--all")
    assert made.returncode == 0, made.stderr
    assert "bakeoff sweeps=rlhf" in made.stdout, "the command that makes a missing study"
    assert set(pd.read_csv(tmp_path / "reports" / "methods" / "runs.csv")["seed"]) == {1, 2, 3}
    least = {"methods": 8, **STUDIES, "claims": 1}
    for name, figures in least.items():
        page = (tmp_path / "reports" / f"{name}.html").read_text()
        assert "Traceback" not in page, name
        assert "TypeError" not in page, name
        assert "<script" not in page, name
        contents = re.findall('<a href="#([^"]+)">', re.search("<nav>(.*?)</nav>", page)[1])
        assert contents == re.findall('<h2 id="([^"]+)"', page), name
        assert "set-up" in " ".join(contents).lower(), name
        assert page.count('<details class="made">') >= figures, name
        texts = [html.unescape(text) for text in re.findall(r'<img alt="([^"]*)"', page)]
        assert len(texts) == page.count("<img"), name
        assert all(re.match(r"[A-ZÀ-Ž].*\. .*(Across|Up|Panels|Rows)", text, re.DOTALL) for text in texts), (
            name,
            texts,
        )
        assert f"bakeoff-report {name}" in page, name
        assert len(list((tmp_path / "reports" / name).glob("*.png"))) >= figures, name
        assert (tmp_path / "reports" / f"{name}.md").read_text().startswith("|"), name
    by_seed_table = (tmp_path / "reports" / "methods.md").read_text().split("by seed:")[1].split()
    assert by_seed_table[by_seed_table.index("ppo") + 2 :: 2][:4] == ["greedy", "0.9510", "0.9520", "0.9530"]

    files = [path for path in (tmp_path / "reports" / "tuning").iterdir() if path.is_file()]
    before = {path: path.read_bytes() for path in [*files, *(tmp_path / "reports").glob("tuning.*")]}
    again = report("tuning")
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before, "the same store, the same bytes"


PAGE = """
from bakeoff.report.claim import Claim, difference
from bakeoff.report.pages.methods import table

NOTEBOOK = "tuning_like_mine"
CLAIMS = [Claim("10 mine", "a beats b", "a − b", difference("a", "b"), above=0.0)]


def verdict(study):
    return f"My own answer from {len(study.runs)} runs."
"""
NOTEBOOK = """
from IPython.display import Markdown, display
from bakeoff.report.page import heading, page_of
from bakeoff.report.study import read_study

study = read_study(folder)
display(Markdown(heading(page_of(study.name), study)))
"""


def test_a_study_of_the_users_folder_has_the_rights_of_ours(report, tmp_path, monkeypatch):
    """Its sweep, notebook and page lie in the user's folder; each that is missing is named, and its claim is tested."""
    tracking = synthetic_store(store_of(tmp_path), "mine", {"a": {}, "b": {}}, SEEDS, lambda arm, seed: run(0.9, seed))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    monkeypatch.setenv("BAKEOFF_STUDIES", str(tmp_path))
    for folder in ("sweeps", "pages", "analysis"):
        (tmp_path / folder).mkdir()
    (tmp_path / "sweeps" / "mine.yaml").touch()
    (tmp_path / "pages" / "mine.py").write_text(PAGE.replace("def verdict", "def answer"))
    assert "pages/mine.py has no function verdict(study)" in report("mine").stderr
    (tmp_path / "pages" / "mine.py").write_text(PAGE)
    assert (
        f"the study 'mine' has no notebook: {tmp_path}/analysis/tuning_like_mine.ipynb is missing"
        in report("mine").stderr
    )
    parameters = nbformat.v4.new_code_cell("folder = ''", metadata={"tags": ["parameters"]})
    book = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(NOTEBOOK)])
    nbformat.write(book, tmp_path / "analysis" / "tuning_like_mine.ipynb")
    made = report("mine")
    assert made.returncode == 0, made.stderr
    assert "My own answer from 6 runs." in (tmp_path / "reports" / "mine.html").read_text()
    assert "mine" in [study for study, _ in all_claims()]
    table = claims.verdicts([load_study("mine", tracking)]).set_index("effect")
    assert table.loc["a − b", "verdict"] == "undecided"
