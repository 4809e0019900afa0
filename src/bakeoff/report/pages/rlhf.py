"""The learned reward against the true one: Gao et al. 2022 (arXiv:2210.10760)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.claim import Claim
from bakeoff.report.comparisons import Family
from bakeoff.report.figures import curves, finished, panels
from bakeoff.report.statistics import Estimate, mean_interval
from bakeoff.report.study import Study
from bakeoff.report.tables import REFERENCE_KL, grouped, summary, unmoved

LEARNED, TRUE = "reward/term_learned", "reward/true"
WINDOW = 10  # updates of a running mean


def overoptimisation(study: Study, window: int = WINDOW) -> pd.DataFrame:
    """A row for each run: true reward (running mean over `window` updates) at the start, at its best and at the end.

    `lost` is the best true reward less the final one.
    """
    rows = []
    for (name, seed), run in study.of(TRUE, LEARNED, REFERENCE_KL).groupby(["name", "seed"], sort=False, observed=True):
        wide = run.pivot(index="step", columns="metric", values="value").rolling(window, min_periods=1).mean()
        true = wide[TRUE].iloc[min(window, len(wide)) - 1 :]
        best = true.index[int(true.to_numpy().argmax())]
        rows.append(
            {
                "method": name,
                "seed": seed,
                "true at start": wide[TRUE].iloc[0],
                "true at best": true.max(),
                "best update": best,
                "KL at best": wide.loc[best, REFERENCE_KL],
                "true at end": true.iloc[-1],
                "KL at end": wide[REFERENCE_KL].iloc[-1],
                "learned at end": wide[LEARNED].iloc[-1],
                "lost": true.max() - true.iloc[-1],
            }
        )
    return pd.DataFrame(rows)


def table(study: Study) -> pd.DataFrame:
    """A row for each method: the true reward from start to end, what it lost from its best, and the KL that it took."""
    columns = {
        "true at start": "true reward at start",
        "true at best": "at its best",
        "true at end": "at the end [95 %]",
        "lost": "lost [95 %]",
        "KL at end": "KL at the end (nats/sequence)",
        "learned at end": "learned reward at the end",
    }
    return summary(overoptimisation(study), {"method": "method"}, columns)


def verdict(study: Study, window: int = WINDOW) -> str:
    """Whether the true reward rises under the learned one, and how far it ends below its best, for each method."""
    runs, sentences = overoptimisation(study, window), []
    runs["gain"] = runs["true at end"] - runs["true at start"]
    own = {name: runs[runs["method"] == name].set_index("seed") for name in study.arms}
    found = Family({("end", name): rows["gain"] for name, rows in own.items()}, study.margin, still=unmoved(study))
    for each in found.comparisons:
        same = f"it stands still, since {each.unmoved}" if each.still else found.result(each)
        result = {"end": "it rises", each.b: "it falls"}.get(each.higher, same)
        sentences.append(
            f"Under {each.b} the true reward changes by {each.change.text('+')} from start to end: {result}; it ends "
            f"{mean_interval(own[each.b]['lost']).text()} below its best."
        )
    return " ".join(sentences) + (
        f" {found.note} The best is the largest of many noisy means, so "
        "every run ends somewhat below it. One task, one model, one reward model."
    )


def reward_model_quality(study: Study) -> pd.DataFrame:
    """Held-out accuracy on pairs, loss and calibration error: a row for each reward model, which arms share."""
    names = {
        "reward_model/heldout_pair_accuracy": "share of pairs ranked right",
        "reward_model/heldout_loss": "Bradley–Terry loss",
        "reward_model/calibration_error": "calibration error",
    }
    wide = study.of(*names).pivot_table(index="run", columns="metric", values="value", aggfunc="first", observed=True)
    return wide.rename(columns=names).drop_duplicates().reset_index(drop=True)


def plot(study: Study) -> Figure:
    """The learned and the true reward over √KL to the start, a panel for each method: Gao et al. 2022 figure 1.

    Each seed is a line, a running mean. The learned reward is in standard deviations of the start's scores (left axis);
    the true reward is in [0, 1] (right axis).
    """
    figure, all_axes = panels(len(study.arms), 3.0, columns=len(study.arms), sharey=True)
    distance = curves(study, REFERENCE_KL, smooth=WINDOW).rename(columns={"value": "kl"})
    for axes, arm in zip(all_axes, study.arms, strict=True):
        twin = axes.twinx()
        for target, metric, colour in ((axes, LEARNED, "#D55E00"), (twin, TRUE, "#0072B2")):
            both = curves(study, metric, smooth=WINDOW).merge(distance, on=["name", "seed", "x"])
            for _, run in both[both["name"] == arm].groupby("seed"):
                target.plot(np.sqrt(run["kl"].clip(lower=0)), run["value"], color=colour, lw=1.3, alpha=0.8)
        twin.set_ylim(0, 1)
        twin.spines["right"].set_visible(True)
        twin.tick_params(axis="y", colors="#0072B2", labelright=arm == study.arms[-1])
        axes.tick_params(axis="y", colors="#D55E00")
        axes.set_title(arm)
    twin.set_ylabel("true reward", color="#0072B2")
    all_axes[0].set_ylabel("learned reward (standard deviations)", color="#D55E00")
    figure.supxlabel("√KL to the start (√nats per sequence)", fontsize=10)
    return finished(figure, "Learned and true reward over the distance from the start, a line for each seed.", study)


def four_models(study: Study) -> Estimate:
    """The weights of all four models over the actor's."""
    models = ("actor", "critic", "reference", "reward_model")
    actor, *others = (grouped(study, f"memory/weights_{role}_mb").max()["ppo"] for role in models)
    return mean_interval(1 + sum(others) / actor)


CLAIMS = [
    Claim(
        "8 RLHF",
        "Four models are heavy",
        "weights of the four models ÷ the actor's",
        four_models,
        above=3.0,
        by_construction=True,
    ),
]
