"""Every study's page from a store whose answers are known: the sentences, the frames, and the notebooks themselves."""

import math

import numpy as np
import pandas as pd
import pytest

from bakeoff.report import across_seeds, bounds, claims, frontier, quality, reuse, tuning, verdicts
from bakeoff.report.bench import synthetic_store
from bakeoff.report.study import load_study, matched, provenance
from bakeoff.report.summary import study_table, study_verdict
from bakeoff.report.tables import by_seed
from bakeoff.tracking import Tracking

pytestmark = pytest.mark.xdist_group("pages")  # one worker: the store is shared
SEEDS = (1, 2, 3)
STEPS = (0, 5, 10)
MEMORY = ("rollout", "actor_update", "critic_update")


def run(final, kl=1.0, start=0.2, seconds=10.0, rollout=0.25, ess=1.0, behaviour=0.01, extra=None):
    """The metrics of a run whose accuracy goes on a straight line from start to final in ten updates of 256."""
    values = {
        "eval/greedy_accuracy": lambda share: start + share * (final - start),
        "eval/sampled_accuracy": lambda share: 0.1,
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


def studies(path):
    """One store with a tiny sweep of each kind; accuracies differ between seeds by a thousandth, alike in all arms."""

    def sweep(name, notebook, arms, series):
        tags = {"question": f"{name}?", "notebook": notebook}
        about = {arm: params() | extra for arm, extra in arms.items()}
        return synthetic_store(path, name, about, SEEDS, series, tags)

    finals = {"ppo": 0.95, "ppo_kl": 0.93, "grpo": 0.94}
    sweep(
        "methods",
        "methods",
        {name: {"choice/algorithm": name} for name in finals},
        lambda arm, seed: run(finals[arm] + seed / 1000),
    )
    kls = {0.01: 1.0, 1.0: 0.1}
    places = {f"{place} {beta}": (place, beta) for place in ("in_reward", "in_loss") for beta in kls}
    sweep(
        "kl_frontier",
        "kl_frontier",
        {name: {frontier.PLACE: place, frontier.BETA: str(beta)} for name, (place, beta) in places.items()},
        lambda arm, seed: run(
            (0.9 if "reward" in arm else 0.85) - (0.1 if arm.endswith("1.0") else 0) + seed / 1000,
            kls[places[arm][1]],
        ),
    )
    sweep(
        "sample_reuse",
        "sample_reuse",
        {
            f"{objective} {epochs}": {reuse.OBJECTIVE: objective, reuse.EPOCHS: str(epochs)}
            for objective in ("ratio", "clip")
            for epochs in (1, 2, 4, 8)
        },
        lambda arm, seed: run(
            {"1": 0.6, "2": 0.8, "4": 1.0, "8": 0.7}[arm[-1]] - seed / 1000,
            seconds=10.0 * int(arm[-1]),
            ess=1 - int(arm[-1]) / 100,
        ),
    )
    ways = {"clip_0_1": ("ppo", 0.1), "clip_0_2": ("ppo", 0.2)}
    ways |= {"adaptive_0_002": ("ppo_kl", 0.002), "adaptive_0_006": ("ppo_kl", 0.006)}
    ways |= {"penalty_1": ("ppo_penalty", 1.0), "penalty_10": ("ppo_penalty", 10.0)}
    ends = dict(zip(ways, (0.9, 0.95, 0.7, 0.94, 0.93, 0.8), strict=True))
    sweep(
        "clip_vs_adaptive",
        "clip_vs_adaptive",
        {
            name: {"choice/algorithm": algorithm, bounds.WAYS[algorithm][1]: str(strength)}
            for name, (algorithm, strength) in ways.items()
        },
        lambda arm, seed: run(
            ends[arm] + (0.001 * seed if arm in ("clip_0_2", "penalty_1") else 0), behaviour=1.2 * ways[arm][1]
        ),
    )
    sweep(
        "gradient_quality",
        "gradient_quality",
        {"reinforce": {}, "reinforce_baseline": {}},
        lambda arm, seed: {
            metric: {0: value + seed / 1000}
            for metric, value in (
                ("gradient/cosine", 0.4),
                ("gradient/bias", 0.1),
                ("gradient/alignment", 0.9 if arm == "reinforce" else 1.0),
                ("gradient/snr_per_1000_tokens", 0.1 if arm == "reinforce" else 0.3),
                ("gradient/snr_per_second", 1.0),
                ("gradient/relative_variance", 8.0 if arm == "reinforce" else 4.0),
            )
        },
    )
    sweep(
        "advantage_quality",
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
            {"question": "tuning?", "notebook": "tuning"},
        )
    return Tracking(uri=f"sqlite:///{path}")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return studies(tmp_path_factory.mktemp("store") / "mlflow.db")


def test_a_store_is_read_whole_and_typed(store):
    study = load_study("methods", store)
    per_run = sum(len(values) for values in run(0.9).values())
    assert len(study.metrics) == 9 * per_run
    assert isinstance(study.metrics["metric"].dtype, pd.CategoricalDtype)
    assert study.arms == ["ppo", "ppo_kl", "grpo"]
    assert by_seed(study, "eval/greedy_accuracy", "ppo").to_dict() == pytest.approx({1: 0.951, 2: 0.952, 3: 0.953})
    assert provenance(study) == "3 seeds, a small number; tuned on seed 100"
    assert "**Matched:**" in matched(study)
    nan = load_study("advantage_quality", store).metrics.query("metric == 'advantage/rank_accuracy_by_position'")
    assert nan["value"].isna().sum() == 6, "a store flags NaN and keeps 0 in its place"


def test_across_seeds(store):
    """The best final mean is 0.952, the start 0.2: the threshold is 0.764, and PPO of seed 2 there at 0.75."""
    study = load_study("methods", store)
    assert across_seeds.threshold(study) == pytest.approx(0.764)
    table = across_seeds.aggregates(study).set_index("method")
    assert table.loc["ppo", "IQM"] == pytest.approx(0.952)
    assert table.loc["ppo", "low"] == pytest.approx(0.951)
    assert table.loc["ppo", "area under curve"] == pytest.approx((0.2 + 0.952) / 2)
    assert table.loc["ppo", "sequences to 0.764"] == pytest.approx(2560 * 0.75)
    assert table.loc["ppo", "seconds to 0.764"] == pytest.approx(7.5)
    chances = across_seeds.improvement(study)
    assert chances.loc["ppo", "grpo"] == 1
    assert chances.loc["ppo", "ppo"] == 0.5
    slow = across_seeds.to_threshold(study, "sequences", 0.942)
    assert slow[slow["name"] == "ppo_kl"]["x"].isna().all(), "never"


def test_the_frontier_is_compared_at_equal_kl(store):
    """Both places span 0.1 to 1 nats; in between in_reward is 0.05 above, in every seed."""
    study = load_study("kl_frontier", store)
    table = frontier.at_equal_kl(study)
    assert table["kl"].tolist() == pytest.approx([math.sqrt(0.1)] * 3, rel=1e-4)
    assert table["difference"].tolist() == pytest.approx([0.05] * 3)
    assert "in_reward less in_loss is +0.050" in frontier.frontier_verdict(study)
    assert "in_reward is higher" in frontier.frontier_verdict(study)


def test_what_reuse_saves(store):
    """Four epochs end at 1.0 and one at 0.6: the threshold is 0.8 and only 2 (at its very end) and 4 get there."""
    study = load_study("sample_reuse", store)
    table = reuse.reuse(study)
    own = table[(table["objective"] == "ratio") & (table["seed"] == 1)].set_index("epochs")
    level = across_seeds.threshold(study)
    assert own.loc[4, "sequences"] == pytest.approx(2560 * (level - 0.2) / (0.999 - 0.2))
    assert np.isnan(own.loc[1, "sequences"])
    assert own["sampling"].tolist() == pytest.approx([0.25] * 4)
    share = (level - 0.2) / (0.998 - 0.2)  # one epoch never gets there, and counts with all that it used
    assert reuse.saved(study, "sequences", "ratio", 4)[0] == pytest.approx(share, rel=1e-3)
    assert reuse.saved(study, "seconds", "ratio", 4)[0] == pytest.approx(4 * share, rel=1e-3)
    assert reuse.saved(study, "accuracy", "ratio", 4)[0] == pytest.approx(1.0 / 0.6, rel=1e-2)
    assert "the highest mean is with 4 epochs (0.998; with 1: 0.598, with 8: 0.698)" in reuse.reuse_verdict(study)


def test_bounds_are_compared_at_their_best_and_at_their_worst(store):
    study = load_study("clip_vs_adaptive", store)
    spread = bounds.spreads(study)
    assert spread["adaptive penalty"].tolist() == pytest.approx([0.24] * 3)
    assert spread["clip"].tolist() == pytest.approx([0.051, 0.052, 0.053])
    assert bounds.target_ratios(study)["ratio"].tolist() == pytest.approx([1.2] * 6)
    text = bounds.bounds_verdict(study)
    assert "clip 0.952, adaptive penalty 0.940, fixed penalty 0.932" in text
    assert "Clip less adaptive penalty: +0.012" in text
    assert "clip is higher" in text


def test_quality_is_told_in_sentences(store):
    text = quality.gradient_verdict(load_study("gradient_quality", store))
    assert "The gradient of reinforce_baseline has the most signal" in text
    assert "reinforce 0.34 [0.33, 0.34]" in text
    assert "interval below one: reinforce (0.90 [" in text
    study = load_study("advantage_quality", store)
    assert "baseline_group_mean 0.50 [0.50, 0.50], baseline_critic 0.30" in quality.advantage_verdict(study)
    assert len(quality.by_position(study, "advantage/rank_accuracy")) == 6, "without what is not a number"


def test_tuning_reads_several_sweeps_as_one(store):
    assert len(load_study("tuning", store).runs) == 2
    study = load_study("tuning", store, sweeps=2)
    table = tuning.search_table(study).set_index("method")
    assert table["trials"].to_dict() == {"ppo": 2, "grpo": 2}
    assert table.loc["ppo", "best lr"] == 1e-4
    assert "ppo 1.0e-04 (0.900, 2 trials)" in study_verdict(study)
    assert "best lr" in study_table(study)


def test_claims_have_verdicts_by_their_rules(store):
    table = verdicts.verdicts(store).set_index("effect")
    variance = table.loc["relative variance, batch mean ÷ none"]
    assert variance["value"] == pytest.approx(0.5, rel=1e-3)
    assert variance["verdict"] == "supported"
    assert table.loc["final accuracy, GRPO − PPO", "value"] == pytest.approx(-0.01)
    assert table.loc["final accuracy, GRPO − PPO", "verdict"] == "supported", "above the margin of -0.02"
    assert table.loc["correlation with the truth, critic − group mean", "verdict"] == "supported"
    assert table.loc["factor by which the median KL misses its target", "value"] == pytest.approx(1.2)
    assert table.loc["weights of the four models ÷ the actor's", "verdict"] == "not tested: bakeoff sweeps=rlhf"
    assert table.loc["share of PPO's largest peak that GRPO saves", "verdict"] == "undecided", "zero is its bar"
    assert "6 not tested" in verdicts.claims_verdict(verdicts.verdicts(store))


@pytest.mark.parametrize(
    ("above", "low", "high", "verdict"),
    [
        (True, 0.6, 0.9, "supported"),
        (True, 0.1, 0.4, "not supported"),
        (True, 0.4, 0.6, "undecided"),
        (False, 0.1, 0.4, "supported"),
        (False, 0.6, 0.9, "not supported"),
        (True, math.nan, math.nan, "undecided"),
    ],
)
def test_the_rule(above, low, high, verdict):
    claim = claims.Claim("1", "text", "methods", "effect", lambda study: (0, 0, 0), 0.5, above)
    assert claim.verdict(low, high) == verdict


def test_a_part_of_a_study(store, report, monkeypatch):
    part = load_study("methods", store, where="algorithm != 'ppo' and seed == 1")
    assert part.arms == ["ppo_kl", "grpo"]
    assert set(part.metrics["seed"]) == {1}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    refused = report("methods", "--where", "seeds == 1")
    assert refused.returncode == 2
    assert "where is 'seeds == 1', which cannot be read" in refused.stderr
    nothing = report("methods", "--where", "seed == 9")
    assert "of which no finished run is true; names are ppo, ppo_kl, grpo" in nothing.stderr


def test_every_notebook_runs_on_a_tiny_store(report, store, tmp_path, monkeypatch):
    """The command that makes every page, as a user calls it: each has its figures and no traceback."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    made = report("--all", "--where", "seed < 3 or seed == 100")
    assert made.returncode == 0, made.stderr
    assert "bakeoff sweeps=rlhf" in made.stdout, "what the store does not hold, and how it is made"
    assert set(pd.read_csv(tmp_path / "reports" / "methods" / "runs.csv")["seed"]) == {1, 2}
    figures = {
        "methods": 10,
        "kl_frontier": 3,
        "sample_reuse": 2,
        "clip_vs_adaptive": 2,
        "gradient_quality": 1,
        "advantage_quality": 2,
        "tuning": 1,
        "claims": 1,
    }
    for name, least in figures.items():
        page = (tmp_path / "reports" / f"{name}.html").read_text()
        assert "Traceback" not in page, name
        assert len(list((tmp_path / "reports" / name).glob("*.png"))) >= least, name
        assert (tmp_path / "reports" / f"{name}.md").read_text().startswith("|"), name
