"""Three ways to bound a step, each at several strengths: clip, adaptive penalty, fixed penalty."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.figures import COLOURS, laid_out, style
from bakeoff.report.statistics import mean_interval, paired_difference, told_apart
from bakeoff.report.study import ACCURACY, Study, provenance
from bakeoff.report.tables import final

# algorithm → what the way is called, and the key of its strength
WAYS = {
    "ppo": ("clip", "algorithm.objective.epsilon_low"),
    "ppo_kl": ("adaptive penalty", "algorithm.kl_to_behaviour.target_nats_per_token"),
    "ppo_penalty": ("fixed penalty", "algorithm.kl_to_behaviour.beta"),
}
SHADES = {way: COLOURS[algorithm] for algorithm, (way, _) in WAYS.items()}
KL = "kl/behaviour_k3_per_token"


def bounds(study: Study) -> pd.DataFrame:
    """A row a run: name, seed, way, strength, accuracy, and kl, the median KL of an update in nats per token."""
    params = study.params.set_index(["run", "key"])["value"]
    rows = study.runs[["run", "name", "seed", "algorithm"]].copy()
    rows["way"] = [WAYS[algorithm][0] for algorithm in rows["algorithm"]]
    rows["strength"] = [
        float(params[run, WAYS[algorithm][1]]) for run, algorithm in zip(rows["run"], rows["algorithm"], strict=True)
    ]
    medians = study.of(KL).groupby(["name", "seed"])["value"].median()
    rows = rows.drop(columns=["run", "algorithm"]).set_index(["name", "seed"])
    rows["accuracy"] = final(study, ACCURACY).set_index(["name", "seed"])["value"]
    rows["kl"] = medians
    return rows.reset_index()


def spreads(study: Study) -> pd.DataFrame:
    """A row a seed, a column a way: highest less lowest accuracy over the strengths: what a wrong strength costs."""
    table = bounds(study)
    spread = table.groupby(["seed", "way"], sort=False)["accuracy"].agg(lambda x: x.max() - x.min())
    return spread.unstack("way")


def bounds_table(study: Study) -> pd.DataFrame:
    """A row an arm: way, strength, accuracy with 95 % interval, and the median KL of an update."""
    rows = [
        (way, strength, *mean_interval(own["accuracy"]), own["kl"].mean())
        for (way, strength), own in bounds(study).groupby(["way", "strength"], sort=False)
    ]
    return pd.DataFrame(rows, columns=["way", "strength", "accuracy", "low", "high", "median KL (nats/token)"])


def bounds_verdict(study: Study) -> str:
    """Whether the clip beats the penalties at the best strength of each, and what a wrong strength costs."""
    table, runs, spread = bounds_table(study), bounds(study), spreads(study)
    highest = table.sort_values("accuracy").drop_duplicates("way", keep="last")
    best = {str(row["way"]): row for _, row in highest.sort_index().iterrows()}

    def at_best(way: str) -> pd.Series:
        chosen = (runs["way"] == way) & (runs["strength"] == best[way]["strength"])
        return pd.Series(runs[chosen].set_index("seed")["accuracy"])

    text = "At the best strength of each: " + ", ".join(f"{w} {r['accuracy']:.3f}" for w, r in best.items()) + ". "
    for way in best:
        if way == "clip" or "clip" not in best:
            continue
        mean, low, high = difference = paired_difference(at_best("clip"), at_best(way))
        text += f"Clip less {way}: {mean:+.3f} [{low:+.3f}, {high:+.3f}], {told_apart(difference, 'clip', way)}. "
    costs = []
    for name, cost in spread.items():
        mean, low, high = mean_interval(cost)
        costs.append(f"{name!s} {mean:.3f} [{low:.3f}, {high:.3f}]")
    return text + "Between the best and the worst strength lie: " + ", ".join(costs) + "."


def plot_bounds(study: Study) -> Figure:
    """Accuracy, and the median KL of an update, over strength in steps from a way's middle: a line a way."""
    style()
    table = bounds(study)
    figure, panels = plt.subplots(1, 2, figsize=(10.0, 4.2), layout="constrained")
    for axes, measure in zip(panels, ("accuracy", "kl"), strict=True):
        for number, (way, own) in enumerate(table.groupby("way", sort=False)):
            colour, points = SHADES[str(way)], []
            for place, (strength, runs) in enumerate(own.groupby("strength")):
                mean, low, high = mean_interval(runs[measure])
                x = place + 0.12 * (number - 1)
                points.append((x, mean))
                axes.plot([x, x], [max(low, 1e-5) if measure == "kl" else low, high], color=colour, lw=2, alpha=0.4)
                axes.annotate(f"{strength:g}", (x, mean), (4, 5), textcoords="offset points", fontsize=8, color=colour)
            axes.plot(*zip(*points, strict=True), "o-", color=colour, ms=6, mec="white", label=str(way))
        axes.set_xticks(range(3), ["smallest", "middle", "largest"])
    panels[0].set_ylabel("held-out greedy accuracy")
    panels[1].set_ylabel("median KL of an update (nats per token)")
    panels[1].set_yscale("log")
    panels[0].legend(frameon=False)
    figure.supxlabel("strength (ε, target in nats per token, or β: its value is beside the dot)", fontsize=11)
    figure.suptitle(f"Means with 95 % intervals. {provenance(study)}", x=0.01, ha="left", fontsize=10)
    return laid_out(figure)


def target_ratios(study: Study) -> pd.DataFrame:
    """Median KL of an update over its target, of each run with an adaptive penalty: strength, seed, ratio."""
    own = bounds(study).query("way == 'adaptive penalty'")
    return own.assign(ratio=own["kl"] / own["strength"])[["strength", "seed", "ratio"]].reset_index(drop=True)
