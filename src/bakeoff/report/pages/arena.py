"""The arena: methods × regimes × seeds, a verdict on each prediction, and the method to choose in each regime."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from bakeoff.regime import parsed
from bakeoff.report.claim import Claim
from bakeoff.report.comparisons import Family, pooled
from bakeoff.report.duel import answer, duel
from bakeoff.report.figures import WIDTH, colours, finished, panels, style
from bakeoff.report.naming import enumerated
from bakeoff.report.regimes import (
    BROKEN,
    SCORE,
    VERDICTS,
    Choice,
    arms,
    choices,
    effect,
    everywhere,
    family,
    invariances,
    overall,
    ranked,
    regimes,
    scores,
    shared,
    still,
    verdicts,
    wide,
)
from bakeoff.report.statistics import (
    CONFIDENCE,
    Estimate,
    counted,
    detectable,
    improvement_over_regimes,
    mean_interval,
)
from bakeoff.report.study import SAMPLED, Study
from bakeoff.report.tables import number, pass_at_k

MEASURE = SAMPLED  # what --detect is about
KINDS = ("others that none is significantly above", "avoid: some method is significantly above")
CAVEAT = (
    "Learning rates, and the radius of TRPO, are those of the plain regime times the study's factors, by seed. All "
    "results are of one small model and one task: the arena says how methods respond to a property, not how well they "
    "do elsewhere."
)
BY_DIFFICULTY = f"{SAMPLED}_of_"


def table(study: Study) -> pd.DataFrame:
    """A row for each regime: the method of the highest mean score, those that no other exceeds, and those to avoid."""
    frame, rows = scores(study), []
    for each in choices(study):
        means = wide(frame, each.regime).mean()
        top = str(means.idxmax())
        named = {
            kind: [f"{m} {means[m]:z.2f}" for m in own if m != top] for kind, own in zip(KINDS, each[2:], strict=True)
        }
        rows.append(
            {"regime": each.regime, "highest mean": f"{top} {means[top]:z.2f}"}
            | {kind: ", ".join(own) or "–" for kind, own in named.items()}
        )
    return pd.DataFrame(rows)


def score_table(study: Study) -> pd.DataFrame:
    """A row for each method, highest first: score over all regimes, then the mean score in each regime.

    The interval is of the interquartile mean over regimes and seeds; it is over the regimes that most methods ran. A
    method that no other exceeds in a regime has a star there.
    """
    frame = scores(study)
    order, common = ranked(frame), shared(frame)
    stars = {each.regime: each.choose for each in choices(study)}
    means = frame.pivot_table(index="method", columns="regime", values=SCORE).reindex(index=order, columns=list(stars))
    rows = [
        {"method": name, "IQM [95 %]": overall(frame, name, common).text()}
        | {
            regime: f"{mean:z.2f}{'*' * (name in best)}" if np.isfinite(mean) else "–"
            for (regime, best), mean in zip(stars.items(), own, strict=True)
        }
        for name, own in zip(order, means.to_numpy(dtype=float), strict=True)
    ]
    return pd.DataFrame(rows)


def by_difficulty(study: Study) -> pd.DataFrame:
    """A row for each arm: its final sampled accuracy on the held-out prompts of each difficulty, mean over seeds.

    It has the arms whose task has prompts of several difficulties, as in the regime `mixed`; empty without one.
    """
    levels = [str(name) for name in study.metrics["metric"].unique() if str(name).startswith(BY_DIFFICULTY)]
    last = study.last[study.last["metric"].isin(levels)].astype({"name": str, "metric": str})
    means = last.pivot_table(index="name", columns="metric", values="value", sort=False)
    if means.empty:
        return means
    in_order = sorted(levels, key=lambda level: (len(level), level))  # of numbers
    means = means[in_order].map(number).rename(columns=lambda level: str(level).removeprefix(BY_DIFFICULTY))
    return means.rename_axis(index="arm", columns=None).reset_index()


def predictions(study: Study) -> pd.DataFrame:
    """A row for each prediction, then for each invariance: what is stated, its source, the effect and the verdict."""
    about = regimes(study)
    rows = [
        {
            "regime": each.regime,
            "prediction": each.prediction.text,
            "difference [95 %]": each.effect.text("+"),
            "verdict": each.verdict,
            "source": about.at[each.regime, "source"],
        }
        for each in [*verdicts(study), *invariances(study)]
    ]
    return pd.DataFrame(rows)


def improvement(study: Study) -> pd.DataFrame:
    """The probability that the row's method scores above the column's in the same regime, over regimes and seeds.

    It has a star where it differs significantly from ½, corrected for the number of pairs.
    """
    frame = scores(study)
    complete = [name for name in ranked(frame) if len(everywhere(frame, name, shared(frame)))]
    own = {name: frame[frame["method"] == name] for name in complete}
    pairs = list(itertools.combinations(complete, 2))
    cells = pd.DataFrame("0.50", index=complete, columns=complete)
    for a, b in pairs:
        chance = improvement_over_regimes(own[a], own[b])
        star = "*" * differs_from_half(chance, len(pairs))
        cells.loc[a, b], cells.loc[b, a] = f"{chance.value:.2f}{star}", f"{1 - chance.value:.2f}{star}"
    return cells.rename_axis(index="P(row > column)").reset_index()


def differs_from_half(chance: Estimate, pairs: int) -> bool:
    """Whether a probability differs from ½ by its bootstrap's deviation, corrected for a number of pairs (Bonferroni).

    The deviation is that of a normal distribution with the same 95 % interval: so far in the tail there are no draws.
    """
    deviation = (chance.high - chance.low) / 2 / norm.isf((1 - CONFIDENCE) / 2)
    return bool(abs(chance.value - 0.5) > norm.isf((1 - CONFIDENCE) / 2 / pairs) * deviation)


def families(study: Study) -> list[Family]:
    """The comparisons that are decided together: those of the methods of each regime."""
    frame = scores(study)
    return [family(study, str(regime), frame) for regime in regimes(study).index]


def verdict(study: Study, caveat: str = CAVEAT) -> str:
    """The methods to choose and to avoid by regime, verdicts on predictions, the detectable difference, a caveat."""
    frame = scores(study)
    counts = pd.Series([each.verdict for each in verdicts(study)]).value_counts()
    top = ranked(frame)[0]
    judged = ", ".join(f"{counts.get(name, 0)} {name}" for name in VERDICTS)
    return (
        f"{answer(study)}{highest(study, frame)}\n\nBy significance: {advice(choices(study))}\n\n"
        f"Over the regimes that most methods ran, {top} has the highest score, "
        f"{overall(frame, top, shared(frame)).text()} (interquartile mean; 0 is the start, 1 is every answer right). "
        f"Of {int(counts.sum())} predictions, {judged} (all tests are corrected together, by Holm's method). "
        f"{by_construction(study)}\n\n"
        f"{power(study)} {caveat}"
    )


def by_construction(study: Study) -> str:
    """The number of invariances that hold, and those that are broken."""
    found = [each for each in invariances(study) if each.seeds]
    broken = [f"{each.prediction.text} in {each.regime}" for each in found if each.verdict == BROKEN]
    held = f"Invariances of the code that hold: {len(found) - len(broken)} of {len(found)}"
    return f"{held}{f'; broken: {enumerated(broken)}' if broken else ''}." if found else ""


def advice(named: list[Choice]) -> str:
    """A sentence for each set of methods: those to choose or those to avoid, whichever are fewer."""
    sentences: dict[str, list[str]] = {}
    for each in named:
        few = 0 < len(each.choose) <= len(each.avoid)  # each of a circle of methods may be below another
        avoid = f"Avoid {enumerated(each.avoid, 'or') if each.avoid else 'none'}"
        sentences.setdefault(f"Choose {enumerated(each.choose, 'or')}" if few else avoid, []).append(each.property)
    return " ".join(f"{text} when {'; or '.join(where)}." for text, where in sentences.items())


def highest(study: Study, frame: pd.DataFrame) -> str:
    """A sentence for each method that has the highest mean in a regime, significant or not."""
    where: dict[str, list[str]] = {}
    for regime, about in regimes(study).iterrows():
        where.setdefault(str(wide(frame, str(regime)).mean().idxmax()), []).append(about["property"])
    named = " ".join(f"Choose {method} when {'; or '.join(own)}." for method, own in where.items())
    return f"By the highest mean, significant or not: {named}"


def power(study: Study) -> str:
    """The rule by which a method is higher in a regime, and the difference that the seeds can detect."""
    found = [each for each in families(study) if each.differences]
    if not found:
        return "No regime has two methods, so no method is compared with another."
    (deviation, pairs), seeds = pooled(found), min(each.seeds for each in found)
    smallest = detectable(deviation, seeds, pairs, study.step(MEASURE))
    seen = "show no difference" if np.isinf(smallest) else f"find a difference of {number(smallest)} in four of five"
    return (
        "A method is to be avoided in a regime if another is significantly higher in it (paired by seed, corrected for "
        f"the regime's {pairs} pairs of methods by Holm's method) and not equivalent within ±{study.margin:g}. Arenas "
        f"of {counted(seeds, 'seed')} {seen}."
    )


def plot_map(study: Study) -> Figure:
    """Mean score of each method (row, highest first) in each regime (column), and half the width of its interval."""
    frame = scores(study)
    cells = frame.groupby(["method", "regime"])[SCORE].apply(lambda own: mean_interval(own)).unstack()
    cells = cells.reindex(index=ranked(frame), columns=list(regimes(study).index))
    means = cells.map(lambda cell: cell.value, na_action="ignore").astype(float)
    style()
    figure, axes = plt.subplots(figsize=(WIDTH, 0.44 * len(means) + 1.5))
    axes.imshow(means, cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    for (row, column), cell in np.ndenumerate(cells.to_numpy()):
        if isinstance(cell, Estimate):
            axes.text(column, row - 0.12, short(cell.value), ha="center", va="center", fontsize=7.5)
            if np.isfinite(cell.low):
                half = f"±{short((cell.high - cell.low) / 2)}"
                axes.text(column, row + 0.27, half, ha="center", va="center", fontsize=5.5)
    axes.set_xticks(range(means.shape[1]), [name.replace("_", " ") for name in means.columns], rotation=45, ha="right")
    axes.set_yticks(range(len(means)), means.index)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return finished(figure, "The score of each method in each regime: means, ± half a 95 % interval.", study)


def short(score: float) -> str:
    """A score as a cell of the map has it: .52."""
    return f"{score:z.2f}".replace("0.", ".").replace("-", "−")


def plot_profiles(study: Study) -> Figure:
    """A panel for each method: mean score in each regime with 95 % interval, and the best method's mean as a line."""
    frame, order = scores(study), list(regimes(study).index)
    methods = ranked(frame)
    best = frame.groupby(["regime", "method"])[SCORE].mean().groupby("regime").max().reindex(order)
    figure, every = panels(len(methods), 0.17 * len(order) + 0.5, sharex=True, sharey=True)
    for axes, (name, colour) in zip(every, colours(methods).items(), strict=True):
        own = frame[frame["method"] == name].groupby("regime")[SCORE]
        axes.plot(best, range(len(order)), "|", color="0.6", ms=8)
        for at, regime in enumerate(order):
            if regime in own.groups:
                mean = mean_interval(own.get_group(regime))
                axes.plot([mean.low, min(mean.high, 1.0)], [at, at], color=colour, alpha=0.4)
                axes.plot(mean.value, at, "o", color=colour, ms=4)
        axes.axvline(0, color="0.8", lw=1, zorder=0)
        axes.set_title(name)
        axes.set_xlim(-1.05, 1.05)
        axes.set_yticks(range(len(order)), [regime.replace("_", " ") for regime in order], fontsize=8)
    every[0].invert_yaxis()
    return finished(figure, "The score in each regime: means with 95 % intervals; grey: the highest mean.", study)


def predicted(step: str, text: str, expected: str) -> Claim:
    """The claim that a prediction holds, which names the regime of both its methods: their paired difference."""
    prediction = parsed(expected)

    def of(study: Study) -> Estimate:
        frame = scores(study, prediction.metric)
        if arms(prediction.left_in, prediction) <= still(study, frame):
            return Estimate()
        return mean_interval(effect(frame, prediction.left_in, prediction), study.step(prediction.metric))

    about = f"final sampled accuracy, {prediction.left} − {prediction.right}"
    run = f"regime={prediction.left_in} algorithm={prediction.left},{prediction.right}"
    return Claim(step, text, about, of, above=0.0, arms=run)


TABLES = {
    "PPO or GRPO": duel,
    "Methods and regimes": score_table,
    "By difficulty": by_difficulty,
    "pass@k": pass_at_k,
    "Predictions": predictions,
    "Probability of improvement": improvement,
}
CLAIMS = [
    predicted(
        "2 importance sampling",
        "Where sampling is 80 % of the work (regime costly), reuse with a clip learns more than one step",
        "grpo@costly > rloo@costly",
    ),
    predicted(
        "3 baseline",
        "With all-positive rewards (regime offset), a baseline learns better",
        "reinforce_baseline@offset > reinforce@offset",
    ),
    predicted(
        "7 clip",
        "Where a rollout is used for 16 steps (regime reuse), the clip learns better than unbounded weights",
        "ppo@reuse > importance_sampling@reuse",
    ),
    predicted(
        "9 GRPO",
        "Where prompts differ in level (regime prompt_offset), the group's mean learns better than the batch's",
        "grpo@prompt_offset > reinforce_baseline@prompt_offset",
    ),
    predicted(
        "9 GRPO",
        "Where prompts differ in scale (regime prompt_scale), dividing by the group's deviation learns better",
        "grpo@prompt_scale > dr_grpo@prompt_scale",
    ),
    predicted(
        "9 GRPO",
        "Where every token has its own merit (regime credit), a critic learns better than a whole answer's score",
        "ppo@credit > grpo@credit",
    ),
]
