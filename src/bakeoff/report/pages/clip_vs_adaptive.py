"""Three ways to bound a step, each at three strengths: clip, adaptive KL penalty, fixed KL penalty."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim, difference
from bakeoff.report.comparisons import Family
from bakeoff.report.figures import colours, finished, legend_below, panels, plot_over_strength
from bakeoff.report.statistics import (
    Estimate,
    corrected_for,
    mean_interval,
    paired_difference,
    share_interval,
)
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import FINAL_SAMPLED, STEP_KL, by_run, final, grouped, summary, unmoved

TUNED = 0.006  # target in nats per token; one far below is reached by no β that learns, one far above by no rate
MEASURE = SAMPLED  # what --detect is about
# algorithm → the name of its bound, and the key of the bound's strength
WAYS = {
    "ppo": ("clip", "algorithm.objective.epsilon_low"),
    "ppo_kl": ("adaptive penalty", "algorithm.kl_to_behaviour.target_nats_per_token"),
    "ppo_penalty": ("fixed penalty", "algorithm.kl_to_behaviour.beta"),
}
MIDDLE = {"clip": 0.2, "adaptive penalty": TUNED, "fixed penalty": 1.0}  # strengths, chosen before the runs
SHADES = {way: colour for (way, _), colour in zip(WAYS.values(), colours(list(WAYS)).values(), strict=True)}


def runs_by_bound(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, way, strength, accuracy, and kl, the median KL of an update in nats per token."""
    runs = study.runs[["name", "seed", "algorithm"]].itertuples(index=False)
    return by_run(
        study,
        way=[WAYS[algorithm][0] for algorithm in study.runs["algorithm"]],
        strength=[float(study.param(WAYS[algorithm][1])[name, seed]) for name, seed, algorithm in runs],
        accuracy=final(study, SAMPLED),
        kl=grouped(study, STEP_KL).median(),
    )


def table(study: Study) -> pd.DataFrame:
    """A row for each arm: way, strength, final accuracy and the median KL of an update."""
    runs = runs_by_bound(study)
    runs["strength"] = runs["strength"].map("{:g}".format)
    columns = {"accuracy": FINAL_SAMPLED, "kl": "median KL of an update (nats/token)"}
    return summary(runs, {"way": "way", "strength": "strength (ε, target or β)"}, columns)


def verdict(study: Study) -> str:
    """Whether the clip beats the penalties at the middle strength of each, and how much a wrong strength costs."""
    middle = at_middle(study)
    means = ", ".join(f"{way} {own.mean():.3f}" for way, own in middle.items())
    text = f"Sampled accuracy at the middle strength of each, which was chosen beforehand: {means}. "
    pairs = {("clip", way): (middle["clip"] - own).dropna() for way, own in middle.items() if way != "clip" in middle}
    found = Family(pairs, study.margin, study.step(SAMPLED), unmoved(study, middle_runs(study), "way"))
    for each in found.comparisons:
        text += f"Clip − {each.b}: {each.change.text('+')}, {found.result(each)}. "
    if pairs:
        text += f"{found.note} "
    with corrected_for(math.comb(3, 2)):  # the pair is chosen from the same runs
        costs = ", ".join(
            f"{way} {mean_interval(cost).text() if len(cost) else 'unknown, as runs at one did not finish'}"
            for way, cost in spreads(study).items()
        )
    return text + (
        f"Accuracy at the best strength less that at the worst, by their means: {costs} (intervals corrected for the "
        "three pairs of strengths)."
    )


def by_strength(study: Study) -> dict[str, pd.DataFrame]:
    """The accuracies of each way: a row for each seed, a column for each strength, the smallest first."""
    runs = runs_by_bound(study)
    return {
        str(way): own.pivot_table(index="seed", columns="strength", values="accuracy")
        for way, own in runs.groupby("way", sort=False)
    }


def middle_runs(study: Study) -> pd.DataFrame:
    """The rows of `runs_by_bound` with the middle strength of their way."""
    runs = runs_by_bound(study)
    return runs[runs["strength"] == runs["way"].map(MIDDLE)]


def at_middle(study: Study) -> dict[str, pd.Series]:
    """The accuracies by seed of each way at its middle strength; a way is left out where no run of it finished."""
    ways = middle_runs(study).groupby("way", sort=False)
    return {str(way): own.set_index("seed")["accuracy"] for way, own in ways}


def spreads(study: Study) -> dict[str, pd.Series]:
    """Accuracy at the strength of a way with the highest mean less that at the one with the lowest, by seed.

    The largest less the smallest accuracy of each seed would be above 0 where strengths do not differ. Empty where a
    strength has no finished run, which may be the worst.
    """
    every = pd.concat([study.runs, study.unfinished])
    strengths = every.groupby(every["algorithm"].map(lambda algorithm: WAYS[algorithm][0]))["name"].nunique()
    found = {}
    for way, own in by_strength(study).items():
        means = own.mean()
        cost = (own[means.idxmax()] - own[means.idxmin()]).dropna()
        found[way] = cost if own.shape[1] == strengths[way] else cost.head(0)
    return found


def target_ratios(study: Study) -> pd.DataFrame:
    """The median KL of an update over its target, for each run with an adaptive penalty: strength, seed, ratio."""
    own = runs_by_bound(study).query("way == 'adaptive penalty'")
    return own.assign(ratio=own["kl"] / own["strength"])[["strength", "seed", "ratio"]].reset_index(drop=True)


def target_table(study: Study) -> pd.DataFrame:
    """A row for each target: mean and 95 % interval over seeds of the median KL over the target."""
    runs = target_ratios(study).sort_values("strength", kind="stable")
    runs["strength"] = runs["strength"].map("{:g}".format)
    return summary(runs, {"strength": "target (nats/token)"}, {"ratio": "median KL ÷ target [95 %]"})


def plot(study: Study) -> Figure:
    """Accuracy, and the median KL of an update, over the strengths of each way from smallest to largest."""
    runs = runs_by_bound(study)
    figure, all_axes = panels(2, 3.6)
    for axes, measure, interval in zip(all_axes, ("accuracy", "kl"), (share_interval, mean_interval), strict=True):
        for number, (way, own) in enumerate(runs.groupby("way", sort=False)):
            means, colour = own.groupby("strength")[measure].apply(interval), SHADES[str(way)]
            points = [(place + 0.12 * (number - 1), mean) for place, mean in enumerate(means)]
            plot_over_strength(axes, points, colour, str(way))
            labelled = zip(points, means.index, strict=True) if measure == "kl" else ()  # accuracies lie too close
            for (x, mean), strength in labelled:
                at = (x, mean.value)
                axes.annotate(f"{strength:g}", at, (4, 5), textcoords="offset points", fontsize=8, color=colour)
        axes.set_xticks(range(3), ["smallest", "middle", "largest"])
    all_axes[0].set_ylabel("held-out sampled accuracy")
    all_axes[1].set_ylabel("median KL of an update (nats per token)")
    all_axes[1].set_yscale("log")
    legend_below(figure, all_axes)
    return finished(
        figure,
        "Accuracy and KL of an update over strength (ε, target in nats per token, or β): means with 95 % intervals.",
        study,
    )


def harder_to_pick(study: Study) -> Estimate:
    """The cost of a wrong β minus the cost of a wrong target; corrected, as both pairs come from the same runs."""
    spread = spreads(study)
    with corrected_for(math.comb(3, 2) ** 2):
        return paired_difference(spread["fixed penalty"], spread["adaptive penalty"])


def distance_from_target(study: Study) -> Estimate:
    """The factor by which the median KL of an update misses the tuned target, TUNED: geometric mean over seeds."""
    ratios = target_ratios(study).query("strength == @TUNED").set_index("seed")["ratio"]
    return Estimate(*map(math.exp, mean_interval(np.abs(np.log(ratios)))))


CLAIMS = [
    Claim(
        "5 fixed penalty",
        "It is hard to pick one β: a wrong one costs more than a wrong target",
        "best − worst sampled accuracy over a factor of 100 in β, less that over 100 in the target (corrected for nine "
        "choices of strengths)",
        harder_to_pick,
        above=0.0,
    ),
    Claim(
        "6 adaptive penalty",
        "β adapts to a target KL",
        f"factor by which the median KL misses its target of {TUNED:g} nats per token",
        distance_from_target,
        below=1.5,
    ),
    Claim(
        "7 clip",
        "The clip, at its default strength, is better than the adaptive penalty",
        "final sampled accuracy, clip 0.2 − adaptive 0.006",
        difference("clip_0_2", "adaptive_0_006", SAMPLED),
        above=0.0,
    ),
]
