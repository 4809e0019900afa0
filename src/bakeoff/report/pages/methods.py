"""Methods compared by final held-out accuracy, and what they cost."""

from __future__ import annotations

import itertools
import math

import pandas as pd

from bakeoff.report.claim import Claim, difference
from bakeoff.report.memory import ledger, peaks
from bakeoff.report.statistics import (
    TIE,
    Estimate,
    counted,
    mean_interval,
    paired_difference,
    paired_ratio,
    significance,
)
from bakeoff.report.study import ACCURACY, Study, outcome
from bakeoff.report.tables import FINAL_ACCURACY, by_seed, estimates, start_accuracy, with_not_scored

FEW = 4  # arms, up to which a verdict compares every pair
DISTANCE, CHANGE = "difference from the best [95 %]", "a − b [95 %]"


def table(study: Study) -> pd.DataFrame:
    """The league: a row for each arm, best mean first, with its accuracy and its costs; unfinished arms come last."""
    scores, distances, peak = estimates(study, ACCURACY), from_best(study), study.of("memory/peak_mb")
    best, *_ = distances
    rows = [
        {
            "method": name,
            FINAL_ACCURACY: scores[name].text(),
            DISTANCE: "best mean" if name == best else distance.text("+"),
            "seconds": by_seed(study, "progress/seconds", name).mean(),
            "peak MB": peak[peak["name"] == name]["value"].max(),
            "KL to the start (nats/sequence)": by_seed(study, "kl/reference_k3_per_sequence", name).mean(),
        }
        for name, distance in distances.items()
    ]
    lost = study.unfinished.drop_duplicates("name", keep="last")
    lost = lost[~lost["name"].isin(study.arms)]
    rows += [{"method": run["name"], FINAL_ACCURACY: "–", DISTANCE: outcome(run)} for _, run in lost.iterrows()]
    return with_not_scored(study, pd.DataFrame(rows))


def from_best(study: Study) -> dict[str, Estimate]:
    """The paired difference of each arm's final accuracy from the highest mean, that arm first."""
    values = {name: by_seed(study, ACCURACY, name) for name in study.arms}
    order = sorted(values, key=lambda name: -values[name].mean())
    return {name: paired_difference(values[name], values[order[0]]) for name in order}


def differences(study: Study) -> pd.DataFrame:
    """A row for each pair of arms: the paired difference of final accuracy, and which arm is significantly higher."""
    rows = []
    for a, b in itertools.combinations(study.arms, 2):
        change = difference(a, b)(study)
        rows.append((a, b, change.text("+"), significance(change, a, b)))
    return pd.DataFrame(rows, columns=["a", "b", CHANGE, "significance"])


def verdict(study: Study) -> str:
    """Which methods differ significantly in final held-out accuracy, by how much, and at what cost in time."""
    seconds = {name: by_seed(study, "progress/seconds", name).mean() for name in study.arms}
    cheap, dear = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    few, start = len(study.arms) <= FEW, start_accuracy(study)
    answer = only_arm(study) if len(study.arms) == 1 else all_pairs(study) if few else all_against_best(study)
    if not math.isnan(start):
        answer += f" All start at {start:.3f}."
    return (
        f"{answer} Training takes {seconds[cheap]:.3g} s with {cheap}, {seconds[dear]:.3g} s with {dear}.\n\n"
        f"These data are of one task, one model and {counted(study.seeds, 'seed')}. They say nothing about other "
        "models, longer training or other hyperparameters; the order of the means is no ranking."
    )


def only_arm(study: Study) -> str:
    """The final accuracy of a study's one arm."""
    ((name, mean),) = estimates(study, ACCURACY).items()
    return f"Only {name} finished, so nothing is compared; its final held-out greedy accuracy is {mean.text()}."


def all_pairs(study: Study) -> str:
    """Each pair of arms whose final accuracies differ significantly."""
    pairs = differences(study)
    decided = pairs[pairs["significance"] != TIE]
    text = f"No difference in final held-out greedy accuracy is significant ({interval(study)})."
    if len(decided):
        named = "; ".join(f"{row['a']} − {row['b']} = {row[CHANGE]}" for _, row in decided.iterrows())
        text = f"Significant differences in final held-out greedy accuracy ({interval(study)}): {named}."
        if rest := len(pairs) - len(decided):
            text += f" The other {rest} of {len(pairs)} pairs show {TIE}."
    return f"{text} {uncorrected(len(pairs))}"


def all_against_best(study: Study) -> str:
    """Which arms differ significantly from the one with the highest mean, and which do not."""
    best, *others = distances = from_best(study)
    lower = [name for name in others if distances[name].high < 0]
    equal = [name for name in others if name not in lower]
    return (
        f"{best} has the highest mean of final held-out greedy accuracy, {estimates(study, ACCURACY)[best].text()}. "
        f"Significantly lower ({interval(study)}): {', '.join(lower) or 'none'}. {TIE.capitalize()} from it: "
        f"{', '.join(equal) or 'none'}. {uncorrected(len(others))}"
    )


def interval(study: Study) -> str:
    """The interval that decides on significance."""
    return f"paired 95 % interval over {counted(study.seeds, 'seed')}"


def uncorrected(comparisons: int) -> str:
    """For how many comparisons the intervals are not widened."""
    if comparisons < 2:
        return ""
    return (
        f"These {comparisons} intervals are not corrected for multiplicity: were all methods equal, about one in "
        "twenty would still exclude zero."
    )


def critic_over_actor(study: Study) -> Estimate:
    """The memory held for the critic over that held for the actor, each at the peak of its own update."""
    cells = ledger(study).query("name == 'ppo'").groupby(["role", "phase", "seed"])["mb"].sum()
    return paired_ratio(cells["critic", "critic_update"], cells["actor", "actor_update"])


def memory_saved(study: Study) -> Estimate:
    """The share of PPO's largest peak that GRPO saves."""
    largest = peaks(study).groupby(["name", "seed"], observed=True)["mb"].max()
    return mean_interval(1 - largest["grpo"] / largest["ppo"])


CLAIMS = [
    Claim(
        "9 GRPO",
        "The critic costs as much memory as the actor",
        "held for the critic ÷ held for the actor, in their updates",
        critic_over_actor,
        above=0.9,
    ),
    Claim(
        "9 GRPO",
        "Dropping the critic saves that memory",
        "share of PPO's largest peak that GRPO saves",
        memory_saved,
        above=0.0,
    ),
    Claim(
        "9 GRPO",
        "at no loss of reward (a loss of 0.02 would be one)",
        "final accuracy, GRPO − PPO",
        difference("grpo", "ppo"),
        above=-0.02,
    ),
]
