"""Accuracy over KL to the start, for each place of the KL penalty and each β."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.comparisons import Family
from bakeoff.report.figures import colours, finished, panels, plot_over_strength
from bakeoff.report.statistics import mean_interval, share_interval
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import FINAL_SAMPLED, REFERENCE_KL, by_run, final, summary

MEASURE = SAMPLED  # what --detect is about
PLACE, BETA = "choice/algorithm/kl_to_reference", "algorithm.kl_to_reference.beta"


def frontier(study: Study) -> pd.DataFrame:
    """A row for each run: name, seed, place, beta, and at its end kl (nats per sequence) and accuracy."""
    place, beta = study.param(PLACE), study.param(BETA).astype(float)
    return by_run(study, place=place, beta=beta, kl=final(study, REFERENCE_KL), accuracy=final(study, SAMPLED))


def table(study: Study) -> pd.DataFrame:
    """A row for each place and β: final KL and final accuracy, means over seeds."""
    runs = frontier(study)
    runs = runs.assign(place=runs["place"].str.replace("_", " "), beta=runs["beta"].map("{:g}".format))
    columns = {"kl": "KL to the start (nats/sequence) [95 %]", "accuracy": FINAL_SAMPLED}
    return summary(runs, {"place": "place", "beta": "β"}, columns)


def at_equal_kl(study: Study) -> pd.DataFrame:
    """A row for each seed: the accuracy of both places at the same KL, and their difference.

    Accuracies are interpolated over log KL between a place's βs, at the geometric middle of the KLs that both span.
    """
    a, b = "in_reward", "in_loss"
    rows = []
    for seed, own in frontier(study).groupby("seed"):
        own = own.assign(log=np.log(own["kl"])).sort_values("log")
        lines = [own[own["place"] == place] for place in (a, b)]
        low, high = np.max([line["log"].min() for line in lines]), np.min([line["log"].max() for line in lines])
        if low <= high:  # neither where a place has no run, whose bounds are NaN
            at = (low + high) / 2
            rows.append((seed, np.exp(at), *(np.interp(at, line["log"], line["accuracy"]) for line in lines)))
    frame = pd.DataFrame(rows, columns=["seed", "kl", a, b])
    return frame.assign(difference=frame[a] - frame[b])


def verdict(study: Study) -> str:
    """Whether the place of the penalty matters at equal KL, and the span of KL and accuracy over the βs."""
    pairs, spans = at_equal_kl(study), []
    for place, own in frontier(study).groupby("place", sort=False):
        means = own.groupby("beta")[["kl", "accuracy"]].mean()
        low, high = means.iloc[0], means.iloc[-1]
        spans.append(
            f"{place}: KL {low['kl']:.2f} to {high['kl']:.2f} nats per sequence and accuracy {low['accuracy']:.3f} to "
            f"{high['accuracy']:.3f} for β = {means.index[0]:g} to {means.index[-1]:g}"
        )
    span = ". ".join(spans) + "."
    if len(pairs) < 2:
        return f"The two places reach no KL in common, so they cannot be compared at equal KL. {span}"
    found = Family({("in_reward", "in_loss"): pairs["difference"]}, study.margin)
    (change,) = found.comparisons
    return (
        f"At equal KL ({pairs['kl'].mean():.2f} nats per sequence), in_reward − in_loss is "
        f"{change.change.text('+')}: {found.result(change)}. {found.note} {span} The same β has another "
        "strength in each place, so places are compared at equal KL, not at equal β."
    )


def plot(study: Study) -> Figure:
    """Final accuracy over final KL, a line for each place, β beside each mean; bars are 95 % intervals both ways."""
    runs = frontier(study)
    palette = colours(list(dict.fromkeys(runs["place"])))
    figure, (axes,) = panels(1, 4.0)
    for place, own in runs.groupby("place", sort=False):
        colour, points = palette[str(place)], []
        for beta, each in own.groupby("beta"):
            (kl, *ends), accuracy = np.exp(mean_interval(np.log(each["kl"]))), share_interval(each["accuracy"])
            points.append((kl, accuracy))
            axes.plot(ends, [accuracy.value] * 2, color=colour, alpha=0.4)
            at = (kl, accuracy.value)
            axes.annotate(f"β {beta:g}", at, (5, 6), textcoords="offset points", fontsize=8, color=colour)
        plot_over_strength(axes, points, colour, str(place).replace("_", " "))
    axes.set(
        xscale="log", xlabel="KL to the start at the end (nats per sequence, k3)", ylabel="held-out sampled accuracy"
    )
    axes.legend(title="place of the penalty")
    return finished(figure, "Accuracy over the KL that it takes: means with 95 % intervals.", study)
