"""The page of mismatch from runs whose answer is known."""

import numpy as np

from bakeoff.report.pages import mismatch
from bakeoff.report.study import SAMPLED
from tests.stored import study_of

METHODS, SEEDS = ("a", "b", "c"), (1, 2)
FINALS = {  # by sampler and correction
    ("plain", "none"): 0.8,
    ("old", "none"): 0.5,
    ("old", "good"): 0.7,
    ("old", "bad"): 0.3,
    ("old", "idle"): 0.5,
}


def study():
    rng = np.random.default_rng(0)
    runs, params, metrics = [], [], []
    for (sampler, correction), final in FINALS.items():
        for method in METHODS:
            for seed in SEEDS:
                run, name = f"{sampler}-{correction}-{method}-{seed}", f"{method} {sampler} {correction}"
                runs.append({"run": run, "name": name, "algorithm": method, "seed": seed})
                params += [(run, mismatch.SAMPLER, sampler), (run, mismatch.CORRECTION, correction)]
                metrics.append((run, SAMPLED, 40, final + 0.01 * rng.standard_normal(), name, seed))
    return study_of("mismatch", runs, params, metrics)


def test_a_correction_is_judged_against_none_with_the_same_sampler():
    table = mismatch.table(study()).set_index(["sampler", "correction"])
    assert table.loc[("old", "good"), "result"] == "good is higher"
    assert table.loc[("old", "bad"), "result"] == "without it is higher"
    assert "equivalent" in table.loc[("old", "idle"), "result"]
    assert table.loc[("plain", "none"), "result"] == "–"
    assert next(iter(table.index.get_level_values(0))) == "plain", "the policy as its own sampler comes first"


def test_the_verdict_says_what_a_sampler_costs_and_what_helps():
    text = mismatch.verdict(study())
    assert "old costs +0.3" in text
    assert "with old, good gains and bad loses" in text.lower()


def test_methods_and_figure_have_every_sampler():
    table = mismatch.by_method(study())
    assert len(table) == len(METHODS) * 4
    assert (table[table["correction"] == "good"]["plain"] == "–").all()
    figure = mismatch.plot(study())
    assert [axes.get_title(loc="left") for axes in figure.axes][: len(METHODS)] == list(METHODS)


def test_a_claim_is_the_gain_of_its_correction():
    claim = mismatch.gain("old", "good")
    assert claim.verdict(claim.of(study())) == "supported"
    assert claim.verdict(mismatch.gain("old", "bad").of(study())) == "not supported"
    assert claim.verdict(mismatch.gain("never", "good").of(study())) == "undecided"
