"""Methods compared by final held-out accuracy, and what they cost."""

from __future__ import annotations

import math

import pandas as pd

from bakeoff.report.claim import Claim, difference
from bakeoff.report.comparisons import EQUIVALENT, HIGHER, UNDECIDED, UNMOVED, family
from bakeoff.report.memory import ledger, peaks
from bakeoff.report.statistics import Estimate, counted, mean_interval, paired_difference, paired_ratio
from bakeoff.report.study import ACCURACY, PRIMARY, SAMPLED, Study, outcome
from bakeoff.report.tables import (
    FINAL_ACCURACY,
    REFERENCE_KL,
    SECONDS,
    by_seed,
    estimates,
    final,
    mean_text,
    start_accuracy,
    with_not_scored,
)

FEW = 4  # arms, up to which a verdict names every pair
CHANGE, RESULT = "a − b [95 %]", "result"
GREEDY_RESULT = f"{PRIMARY[ACCURACY]}, {RESULT}"


def table(study: Study) -> pd.DataFrame:
    """The league: a row for each arm, best mean first, with its accuracies and its costs; unfinished arms come last.

    Both accuracies are compared with the study's baseline, or with the arm of the best greedy mean.
    """
    scores, sampled, peak = estimates(study, ACCURACY), estimates(study, SAMPLED), study.of("memory/peak_mb")
    order = sorted(study.arms, key=lambda name: -scores[name].value)
    against = study.baseline or order[0]
    tied = len({round(scores[name].value, 9) for name in order[:2]}) < len(order[:2])
    best = "baseline" if study.baseline or tied else "best greedy mean"
    results = {metric: against_one(study, against, metric) for metric in measured(study)}

    def compared(name: str, metric: str) -> dict[str, str]:
        ours, theirs = (by_seed(study, metric, each) for each in (name, against))
        change = paired_difference(ours, theirs, study.step(metric)).text("+")
        itself = best if metric == ACCURACY else "–"
        return {
            f"{PRIMARY[metric]}, difference from {against} [95 %]": "–" if name == against else change,
            f"{PRIMARY[metric]}, {RESULT}": results[metric].get(name, itself),
        }

    rows = [
        {
            "method": name,
            FINAL_ACCURACY: scores[name].text(),
            "sampled accuracy [95 %]": sampled[name].text(),
            **{key: value for metric in results for key, value in compared(name, metric).items()},
            "seconds": mean_text(by_seed(study, SECONDS, name)),
            "peak MB": peak[peak["name"] == name]["value"].max(),
            "KL to the start (nats/sequence)": mean_text(by_seed(study, REFERENCE_KL, name)),
        }
        for name in order
    ]
    lost = study.unfinished.drop_duplicates("name", keep="last")
    lost = lost[~lost["name"].isin(study.arms)]
    rows += [{"method": run["name"], FINAL_ACCURACY: "–", GREEDY_RESULT: outcome(run)} for _, run in lost.iterrows()]
    return with_not_scored(study, pd.DataFrame(rows))


def against_one(study: Study, against: str, metric: str = ACCURACY) -> dict[str, str]:
    """For each arm that is compared with `against`: lower, higher, equivalent, undecided, or who did not move."""
    results = {}
    for each in (each for each in family(study, metric).comparisons if against in each[:2]):
        other = each.a if each.b == against else each.b
        results[other] = {HIGHER: HIGHER if each.higher == other else "lower", UNMOVED: each.unmoved}.get(
            each.kind, each.kind
        )
    return results


def differences(study: Study) -> pd.DataFrame:
    """A row for each accuracy and pair of arms that is compared: the paired difference, and its result."""
    rows = []
    for metric in measured(study):
        found = family(study, metric)
        rows += [(PRIMARY[metric], *each[:2], each.change.text("+"), found.result(each)) for each in found.comparisons]
    return pd.DataFrame(rows, columns=["decoding", "a", "b", CHANGE, RESULT])


def verdict(study: Study) -> str:
    """Which methods differ in final held-out accuracy, by how much, and at what cost in time."""
    seconds = {name: by_seed(study, SECONDS, name).mean() for name in study.arms}
    cheap, dear = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    many, start = len(study.arms) > FEW or bool(study.baseline), start_accuracy(study)
    compared = all_against_one if many else all_pairs
    answers = [compared(study, metric) for metric in measured(study)] if len(study.arms) > 1 else [only_arm(study)]
    if not math.isnan(start):
        answers[0] += f" All start at {start:.3f}."
    costs = {name: mean_text(by_seed(study, SECONDS, name)) for name in (cheap, dear)}
    dearest = f", {costs[dear]} s with {dear}" if len(study.arms) > 1 else ""
    answers.append(
        f"Training takes {costs[cheap]} s with {cheap}{dearest}. These data are of one "
        f"task, one model and {counted(study.seeds, 'seed')}. They say nothing about other models, longer training or "
        "other hyperparameters; the order of the means is not a ranking."
    )
    return "\n\n".join(answers)


def measured(study: Study) -> list[str]:
    """The accuracies that runs logged, greedy and sampled."""
    return [metric for metric in PRIMARY if len(final(study, metric))]


def only_arm(study: Study) -> str:
    """The final accuracy of a study's one arm."""
    ((name, mean),) = estimates(study, ACCURACY).items()
    return f"Only {name} finished, so nothing is compared; its final held-out greedy accuracy is {mean.text()}."


def all_pairs(study: Study, metric: str = ACCURACY) -> str:
    """The result of each pair of arms in an accuracy."""
    found = family(study, metric)
    sentences = [f"{each.a} − {each.b} = {each.change.text('+')}: {found.result(each)}." for each in found.comparisons]
    return f"Final held-out {PRIMARY[metric]} accuracy. {' '.join(sentences)} {found.note}"


def all_against_one(study: Study, metric: str = ACCURACY) -> str:
    """Which arms are lower or higher than the study's baseline, or than the highest mean, which is among all pairs."""
    scores, found = estimates(study, metric), family(study, metric)
    best = max(scores, key=lambda name: scores[name].value)
    against = study.baseline or best
    results = pd.Series(against_one(study, against, metric))
    kinds = ("lower", HIGHER, EQUIVALENT, UNDECIDED)
    named = {each: ", ".join(results.index[results == each]) or "none" for each in kinds}
    higher = "" if against == best else f" Higher: {named[HIGHER]}."
    still = ", ".join(f"{name} ({result})" for name, result in results.items() if result not in kinds)
    return (
        f"{best} has the highest mean of final held-out {PRIMARY[metric]} accuracy, {scores[best].text()}. "
        f"Lower than {against}: {named['lower']}.{higher} Equivalent to it (within ±{study.margin:g}): "
        f"{named[EQUIVALENT]}. {f'Without a verdict, since not both moved: {still}. ' if still else ''}"
        f"{found.undecided.capitalize()}: {named[UNDECIDED]}. {found.note}"
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
        by_construction=True,
    ),
    Claim(
        "9 GRPO",
        "Dropping the critic saves that memory",
        "share of PPO's largest peak that GRPO saves",
        memory_saved,
        above=0.0,
        by_construction=True,
    ),
    Claim(
        "9 GRPO",
        "Dropping the critic loses no reward (a loss of 0.02 would be one)",
        "final sampled accuracy, GRPO − PPO",
        difference("grpo", "ppo", SAMPLED),
        above=-0.02,
    ),
]
