"""The arena's page from runs whose answer is known."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from bakeoff.regime import SAMPLED_ACCURACY
from bakeoff.report import duel, regimes
from bakeoff.report.detect import detect
from bakeoff.report.pages import arena
from bakeoff.report.statistics import improvement_over_regimes
from bakeoff.report.tables import pass_at_k
from tests.stored import study_of
from tests.test_regimes import config

pytestmark = pytest.mark.xdist_group("regimes")  # as tests/test_regimes.py, whose configurations it reads
SEEDS = range(11, 17)
START = 0.4
REGIMES = {
    "plain": ("none", ["a ~ b", "a > c", "b ~ start"]),
    "noise": ("rewards are noisy", ["a > b", "c > a", "a ~ a@plain", "a > missing", "kl: b > a"]),
}
INVARIANCES = {"plain": ["a ~ b", "c ~ missing"], "noise": ["a ~ a@plain"]}
# final accuracy by method and regime; c is not in `noise` with its last three seeds
FINALS = {
    ("a", "plain"): 0.8,
    ("b", "plain"): 0.8,
    ("c", "plain"): 0.4,
    ("a", "noise"): 0.7,
    ("b", "noise"): 0.5,
    ("c", "noise"): 0.5,
}


def study(finals=None, spread=0.002, still=()):
    rng = np.random.default_rng(0)
    runs, params, metrics = [], [], []
    for (method, regime), final in (finals or FINALS).items():
        property_, predictions = REGIMES[regime]
        for seed in SEEDS:
            run, name = f"{method}-{regime}-{seed}", f"{method} {regime}"
            runs.append({"run": run, "name": name, "algorithm": method, "seed": seed})
            about = {"name": regime, "property": property_, "predictions": str(predictions), "source": "a paper"}
            about["invariances"] = str(INVARIANCES[regime])
            params += [(run, f"regime.{key}", value) for key, value in about.items()]
            params.append((run, "study.margin", "0.05"))
            last = final + spread * rng.standard_normal()
            for metric, values in {SAMPLED_ACCURACY: (START, last), "kl": (0.0, 1.0 if method == "b" else 0.5)}.items():
                metrics += [(run, metric, step, value, name, seed) for step, value in zip((0, 40), values, strict=True)]
            kl = 0.001 if method in still else 1.0
            metrics += [(run, "kl/reference_k3_per_sequence", step, kl, name, seed) for step in (1, 2, 3)]
    return study_of("arena", runs, params, metrics)


def test_the_score_is_zero_at_the_start_and_one_where_every_answer_is_right():
    scores = regimes.scores(study(spread=0)).set_index(["method", "regime", "seed"])["score"]
    assert scores["a", "plain", 11] == pytest.approx(0.4 / 0.6)
    assert scores["c", "plain", 11] == pytest.approx(0)


def test_each_prediction_has_its_verdict():
    found = {(each.regime, each.prediction.text): each for each in regimes.verdicts(study())}
    assert {key: each.verdict for key, each in found.items()} == {
        ("plain", "a ~ b"): "as predicted",
        ("plain", "a > c"): "as predicted",
        ("plain", "b ~ start"): "against the prediction",
        ("noise", "a > b"): "as predicted",
        ("noise", "c > a"): "against the prediction",
        ("noise", "a ~ a@plain"): "against the prediction",
        ("noise", "a > missing"): "not tested",
        ("noise", "kl: b > a"): "as predicted",
    }
    assert found["noise", "kl: b > a"].effect.value == pytest.approx(0.5)
    assert found["noise", "a > missing"].seeds == 0


def test_invariances_hold_or_are_broken_and_are_no_predictions():
    found = {(each.regime, each.prediction.text): each.verdict for each in regimes.invariances(study())}
    assert found == {
        ("plain", "a ~ b"): regimes.HOLDS,
        ("plain", "c ~ missing"): "not tested",
        ("noise", "a ~ a@plain"): regimes.BROKEN,
    }
    text = arena.verdict(study())
    assert "Of 8 predictions" in text
    assert "Invariances of the code that hold: 1 of 2; broken: a ~ a@plain in noise." in text


def test_a_prediction_of_equality_is_not_tested_by_policies_that_did_not_move():
    def found(*still):
        verdicts = regimes.verdicts(study(still=still))
        return {each.prediction.text: each.verdict for each in verdicts if each.regime == "plain"}

    assert found("a", "b")["a ~ b"] == "not tested"
    assert found("a")["a ~ b"] == "as predicted"
    assert found("a", "b", "c")["a > c"] == "as predicted"
    still = study(still=("a", "b"))
    assert regimes.family(still, "plain", regimes.scores(still)).comparisons[0].kind == "did not move"


def test_large_noise_leaves_predictions_undecided():
    found = [each for each in regimes.verdicts(study(spread=1.0)) if each.prediction.metric == SAMPLED_ACCURACY]
    assert {each.verdict for each in found} <= {"undecided", "not tested"}


def test_methods_are_chosen_and_avoided_by_regime():
    plain, noise = regimes.choices(study())
    assert set(plain.choose) == {"a", "b"}
    assert plain.avoid == ["c"]
    assert noise.choose == ["a"]
    avoid = [{name.split()[0] for name in each.split(", ")} for each in arena.table(study())[arena.KINDS[1]]]
    assert avoid == [{"c"}, {"b", "c"}]
    text = arena.verdict(study())
    assert "Choose a when rewards are noisy." in text
    assert "Avoid c when none." in text
    assert re.search(r"^By the highest mean, significant or not: Choose \w when .*rewards are noisy\.\n", text)
    assert "Of 8 predictions, 4 as predicted, 3 against the prediction, 0 undecided, 1 not tested" in text


def test_ppo_and_grpo_are_compared_in_each_regime_that_both_ran(monkeypatch):
    monkeypatch.setattr(duel, "DUEL", ("a", "c"))
    found = arena.duel(study()).set_index("regime")
    assert found["result"].tolist() == ["a is higher", "a is higher"]
    assert found.loc["noise", "score of a"] == "0.50"
    assert found.loc["noise", "a − c, sampled accuracy [95 %]"].startswith("+0.2")
    text = arena.verdict(study())
    assert text.startswith("a or c? Of 2 regimes, a is higher in plain and noise; c is higher in none; the difference")
    assert "is not significant in 0 (Holm, 2 comparisons)" in text
    near = arena.verdict(study(FINALS | {("c", "plain"): 0.78}, spread=0.0005))
    assert near.startswith(
        "a or c? Of 2 regimes, a is higher in noise (by less than 0.05 in plain); c is higher in none"
    )
    monkeypatch.setattr(duel, "DUEL", ("a", "missing"))
    assert arena.duel(study()).empty
    assert arena.verdict(study()).startswith("By the highest mean")


def test_regimes_of_one_property_are_told_apart_by_their_names(monkeypatch):
    monkeypatch.setitem(REGIMES, "noise", ("none", []))
    assert list(regimes.regimes(study())["property"]) == ["none (plain)", "none (noise)"]


def test_a_method_that_is_lower_by_less_than_the_margin_is_not_to_be_avoided():
    near = study(FINALS | {("b", "plain"): 0.78}, spread=0.0005)
    assert regimes.family(near, "plain", regimes.scores(near)).comparisons[0].higher == "a"
    plain, _ = regimes.choices(near)
    assert plain.choose == ["a", "b"]


def test_a_method_that_lacks_a_regime_has_no_aggregate_and_comes_last():
    table = arena.score_table(study({key: value for key, value in FINALS.items() if key != ("b", "noise")}))
    assert list(table["method"]) == ["a", "c", "b"]
    assert table.set_index("method").loc["b", ["IQM [95 %]", "noise"]].tolist() == ["–", "–"]
    assert table.set_index("method")["noise"]["a"].endswith("*")


def test_a_map_and_a_profile_show_every_regime():
    texts = [text.get_text() for text in arena.plot_map(study()).axes[0].texts]
    assert len(texts) == 2 * len(FINALS), "a mean and half the width of its interval"
    assert sum(text.startswith("±") for text in texts) == len(FINALS)
    assert len(arena.plot_profiles(study()).axes) >= 3
    table = arena.improvement(study()).set_index("P(row > column)")
    assert table.shape == (3, 3)
    assert table.loc["a", "c"] == "1.00*", "it lies above in every seed"
    assert table.loc["c", "a"] == "0.00*", "each pair is judged once"
    assert table.loc["a", "a"] == "0.50"


def test_methods_of_equal_scores_rarely_have_a_star():
    rng = np.random.default_rng(0)

    def scores():
        return pd.DataFrame({"regime": np.repeat(list("abcd"), 10), "score": rng.standard_normal(40)})

    chances = [improvement_over_regimes(scores(), scores()) for _ in range(200)]
    stars = {pairs: sum(arena.differs_from_half(each, pairs) for each in chances) for pairs in (1, 28)}
    assert stars[1] < 0.1 * len(chances)
    assert stars[28] < 0.02 * len(chances)


def test_an_arena_of_one_method_has_an_answer_without_comparisons():
    text = arena.verdict(study({("a", "plain"): 0.8, ("a", "noise"): 0.7}))
    assert "No regime has two methods, so no method is compared with another." in text


def test_what_is_not_tested_corrects_nothing(monkeypatch):
    def found():
        verdicts = regimes.verdicts(study({("a", "plain"): 0.42, ("b", "plain"): 0.4}, spread=0.01))
        return [each.verdict for each in verdicts]

    monkeypatch.setitem(REGIMES, "plain", ("none", ["a > b"]))
    alone = found()
    monkeypatch.setitem(REGIMES, "plain", ("none", ["a > b", *(["a > missing"] * 50)]))
    assert found() == [*alone, *(["not tested"] * 50)]
    assert alone == ["as predicted"]


def test_a_difference_to_detect_is_one_within_a_regime_of_sampled_accuracy():
    text = detect(study(spread=0.05), 0.1)
    assert "held-out sampled accuracy" in text
    assert "corrected for 3 comparisons" in text, "the pairs of methods of a regime"


def test_pass_at_k_has_a_column_for_each_k_in_order_for_arms_that_sample_several():
    data = study()
    extra = [
        (f"a-plain-{seed}", f"eval/pass_at_{k}", 40, value, "a plain", seed)
        for seed in SEEDS
        for k, value in {2: 0.85, 16: 0.95}.items()
    ]
    assert pass_at_k(data).empty
    rows = data.metrics.astype({"run": str, "metric": str, "name": str})
    rows = pd.concat([rows, pd.DataFrame(extra, columns=rows.columns)]).sort_values(["run", "metric", "step"])
    table = pass_at_k(
        dataclasses.replace(data, metrics=rows.astype(dict.fromkeys(("run", "metric", "name"), "category")))
    )
    assert list(table) == ["method", "pass@1 [95 %]", "pass@2 [95 %]", "pass@16 [95 %]"]
    assert table["method"].tolist() == ["a plain"]
    assert table.iloc[0, 2:].tolist() == ["0.850 [0.850, 0.850]", "0.950 [0.950, 0.950]"]


def test_accuracy_by_difficulty_has_a_column_for_each_in_order():
    data = study()
    extra = [
        (f"a-plain-{seed}", f"{SAMPLED_ACCURACY}_of_{level}", step, value + 0.1 * (seed == 11), "a plain", seed)
        for seed in (11, 12)
        for level, values in {"10": (0.0, 0.2), "2": (0.5, 0.9)}.items()
        for step, value in zip((0, 40), values, strict=True)
    ]
    assert arena.by_difficulty(data).empty
    rows = data.metrics.astype({"run": str, "metric": str, "name": str})
    rows = pd.concat([rows, pd.DataFrame(extra, columns=rows.columns)]).sort_values(["run", "metric", "step"])
    data.metrics = rows.astype({"run": "category", "metric": "category", "name": "category"})
    table = arena.by_difficulty(dataclasses.replace(data))
    assert table.to_dict("list") == {"arm": ["a plain"], "2": ["0.950"], "10": ["0.250"]}


@pytest.mark.parametrize("claim", arena.CLAIMS, ids=lambda claim: claim.effect)
def test_a_claim_names_its_regime_and_is_one_of_its_predictions(claim):
    (regime,) = re.findall(r"regime (\w+)", claim.text)
    left, right = re.findall(r"(\w+) − (\w+)$", claim.effect)[0]
    assert f"{left} > {right}" in config(f"regime={regime}").regime.predictions
    finals = {(left, regime): 0.8, (right, regime): 0.6}
    REGIMES.setdefault(regime, ("", []))
    INVARIANCES.setdefault(regime, [])
    assert claim.of(study(finals)).value == pytest.approx(0.2, abs=0.01)
    assert np.isnan(claim.of(study(finals, still=(left, right))).value), "neither moved"
