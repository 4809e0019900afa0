"""Memory against accuracy: what a critic costs and earns, and what LoRA and recomputation save."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bakeoff.report.comparisons import Comparison, Family
from bakeoff.report.figures import colours, finished, panels
from bakeoff.report.memory import largest_peaks, peaks_table, size
from bakeoff.report.study import ACCURACY, SAMPLED, Study
from bakeoff.report.tables import FINAL_ACCURACY, FINAL_SAMPLED, by_seed, estimates, unmoved

WITHOUT, WITH = "critic_none", "critic_separate"


def pareto(study: Study) -> pd.DataFrame:
    """A row for each arm: name, phase and mb of its largest peak, accuracy, and whether it is on the front.

    The front is Pareto's in the means: no other arm has both less memory and a higher accuracy.
    """
    frame, scores = largest_peaks(study), estimates(study, ACCURACY)
    frame["accuracy"] = [scores[name].value for name in frame["name"]]
    less, more = frame["mb"].to_numpy(), frame["accuracy"].to_numpy()
    dominated = [
        any((less <= mb) & (more >= accuracy) & ((less < mb) | (more > accuracy)))
        for mb, accuracy in zip(less, more, strict=True)
    ]
    return frame.assign(front=np.logical_not(dominated))


def table(study: Study) -> pd.DataFrame:
    """A row for each arm: its largest peak with its phase, its accuracies, and whether it is on the Pareto front."""
    frame, shown = pareto(study), peaks_table(study)
    for metric, label in ((ACCURACY, FINAL_ACCURACY), (SAMPLED, FINAL_SAMPLED)):
        scores = estimates(study, metric)
        shown[label] = [scores[name].text() for name in frame["name"]]
    shown["Pareto front"] = frame["front"].map({True: "yes", False: ""})
    return shown


def verdict(study: Study) -> str:
    """How much memory dropping the critic saves, and what it costs in accuracy."""
    return dropping(study, {"": (WITHOUT, WITH)})


def dropping(study: Study, pairs: Mapping[str, tuple[str, str]]) -> str:
    """What dropping the critic saves and costs in each setting: GRPO in a pair's first arm, PPO in its second."""
    peak = largest_peaks(study).set_index("name")["mb"]
    held = {(a, b): by_seed(study, ACCURACY, a) - by_seed(study, ACCURACY, b) for a, b in pairs.values()}
    held = {pair: own.dropna() for pair, own in held.items() if set(pair) <= set(peak.index)}
    found = Family(held, study.margin, study.step(ACCURACY), unmoved(study))
    results = {each[:2]: dropped(each, found, peak) for each in found.comparisons}
    sentences = [f"{setting}{results.get(pair) or unanswered(*pair)}" for setting, pair in pairs.items()]
    return " ".join(sentences + ([found.note] if held else []))


def dropped(each: Comparison, found: Family, peak: pd.Series) -> str:
    """The sentence on one setting."""
    change, saved = each.change.text("+"), 1 - peak[each.a] / peak[each.b]
    return (
        f"Dropping PPO's separate critic (GRPO instead) saves {saved:.0%} of the largest peak of "
        f"{size(peak[each.b])} and changes held-out greedy accuracy by {change}: {found.result(each)}."
    )


def unanswered(without: str, having: str) -> str:
    """The verdict of a study in which one of the two arms that it compares is missing."""
    return f"The arms {without} and {having}, which answer the question, have not both finished."


def plot(study: Study) -> Figure:
    """Final held-out accuracy over the largest peak: means with 95 % intervals over seeds; the front is dashed."""
    frame, scores, palette = pareto(study).sort_values("mb"), estimates(study, ACCURACY), colours(study.arms)
    figure, (axes,) = panels(1, 4.0)
    front = frame[frame["front"]]
    axes.plot(front["mb"], front["accuracy"], color="0.6", lw=1, ls="--", zorder=0)
    for _, row in frame.iterrows():
        name, mean = row["name"], scores[row["name"]]
        axes.plot([row["mb"]] * 2, mean[1:], color=palette[name], alpha=0.5)
        axes.plot(row["mb"], mean.value, "o", color=palette[name], ms=7, mec="white", label=name)
    axes.margins(x=0.1)
    axes.set(xlabel="largest peak (MB)", ylabel="held-out greedy accuracy")
    figure.legend(ncols=3, loc="outside lower left")
    return finished(figure, "Accuracy over memory: means with 95 % intervals; dashed: the Pareto front.", study)
