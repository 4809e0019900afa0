"""The tables of a report, as tidy frames."""

from __future__ import annotations

import hashlib
import itertools

import pandas as pd
from pandas.io.formats.style import Styler

from bakeoff.measure import TRAINING
from bakeoff.report.statistics import TIE, mean_interval, paired_difference, told_apart
from bakeoff.report.study import ACCURACY, Study, outcome


def shown(frame: pd.DataFrame, precision: int = 3, **formats: str) -> Styler:
    """A frame as a page shows it; `formats` are those of single columns. The same frame gives the same bytes.

    Columns of large numbers have no decimals.
    """
    numbers = frame.select_dtypes("number")
    large = [column for column in numbers if numbers[column].abs().median() >= 100]
    styled = frame.style.hide(axis="index").format(precision=precision).format("{:.0f}", subset=large)
    for column, form in formats.items():
        styled = styled.format(form, subset=[column])
    return styled.set_uuid(hashlib.sha256(frame.to_csv().encode()).hexdigest()[:8])


def final(study: Study, metric: str) -> pd.DataFrame:
    """The last value of a metric in each run: columns name, seed, value."""
    return study.last.loc[study.last["metric"] == metric, ["name", "seed", "value"]]


def first(study: Study, metric: str) -> pd.DataFrame:
    """The first value of a metric in each run: columns name, seed, value."""
    return study.of(metric).drop_duplicates("run")[["name", "seed", "value"]]


def by_seed(study: Study, metric: str, name: str) -> pd.Series:
    """The final values of one arm, indexed by seed."""
    rows = final(study, metric)
    return rows[rows["name"] == name].set_index("seed")["value"]


def comparison(study: Study) -> pd.DataFrame:
    """A row an arm: seeds, accuracies with their 95 % intervals, KL, training time and peak memory."""
    peak, start = study.of("memory/peak_mb"), first(study, ACCURACY)
    rows = []
    for name in study.arms:
        greedy, low, high = mean_interval(by_seed(study, ACCURACY, name))
        rows.append(
            {
                "method": name,
                "seeds": len(by_seed(study, ACCURACY, name)),
                "start": start[start["name"] == name]["value"].mean(),
                "held-out greedy": greedy,
                "low": low,
                "high": high,
                "held-out sampled": by_seed(study, "eval/sampled_accuracy", name).mean(),
                "KL to reference (nats/sequence)": by_seed(study, "kl/reference_k3_per_sequence", name).mean(),
                "training time (s)": by_seed(study, "progress/seconds", name).mean(),
                "peak memory (MB)": peak[peak["name"] == name]["value"].max(),
            }
        )
    return pd.DataFrame(rows)


def differences(study: Study, metric: str = ACCURACY) -> pd.DataFrame:
    """A row for each pair of arms: paired difference of a final metric over seeds, with its 95 % interval."""
    rows = []
    for a, b in itertools.combinations(study.arms, 2):
        mean, low, high = paired_difference(by_seed(study, metric, a), by_seed(study, metric, b))
        told = told_apart((mean, low, high), a, b)
        rows.append({"a": a, "b": b, "a − b": mean, "low": low, "high": high, "at 95 %": told})
    return pd.DataFrame(rows)


def phases(study: Study, prefix: str) -> pd.DataFrame:
    """Mean over steps and seeds of `time/*` or `memory/*`: a row a phase, a column an arm."""
    unit = "_mb" if prefix == "memory" else ""
    names = {f"{prefix}/{phase}{unit}": phase for phase in (*TRAINING, "measure")}
    wide = study.of(*names).pivot_table(index="metric", columns="name", values="value", aggfunc="mean", observed=True)
    wide = wide.rename(index=names)
    return wide.loc[[phase for phase in names.values() if phase in wide.index], study.arms]


def league(study: Study) -> pd.DataFrame:
    """A row an arm, best mean first: accuracy with interval, whether it is told apart from the best, and its costs."""
    table = comparison(study).sort_values("held-out greedy", ascending=False).reset_index(drop=True)
    table.insert(
        6, "against the best", ["best mean", *(against_best(study, table, name) for name in table["method"][1:])]
    )
    missing = [
        {"method": name, "seeds": 0, "against the best": outcome(rows.iloc[-1])}
        for name, rows in study.unfinished.groupby("name", sort=False)
        if name not in study.arms
    ]
    return pd.concat([table, pd.DataFrame(missing)], ignore_index=True) if missing else table


def league_markdown(study: Study) -> str:
    """The league as a Markdown table, for a README."""
    table = league(study)
    rows = {
        "method": "`" + table["method"] + "`",
        "held-out greedy accuracy [95 %]": [
            f"{row['held-out greedy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" if row["seeds"] else "–"
            for _, row in table.iterrows()
        ],
        "against the best": table["against the best"],
        "training time": table["training time (s)"].map("{:.0f} s".format),
        "peak memory": table["peak memory (MB)"].map("{:.0f} MB".format),
        "KL to the start": table["KL to reference (nats/sequence)"].map("{:.2f}".format),
    }
    return pd.DataFrame(rows).to_markdown(index=False) + "\n"


def against_best(study: Study, table: pd.DataFrame, name: str) -> str:
    """`tie`, or how far below the best mean with its 95 % interval, paired by seed."""
    best = by_seed(study, ACCURACY, table["method"][0])
    mean, low, high = paired_difference(best, by_seed(study, ACCURACY, name))
    return f"{-mean:+.3f} [{-high:+.3f}, {-low:+.3f}]" if low > 0 else "tie"


def verdict(study: Study) -> str:
    """What the final held-out accuracies show, and what they do not, in sentences."""
    table = comparison(study).set_index("method")
    seeds, best = int(table["seeds"].min()), table["held-out greedy"].idxmax()
    told = all_against_best(study) if len(study.arms) > FEW else all_pairs(study, seeds)
    times = table["training time (s)"]
    return told + (
        f"The cheapest in training time is {times.idxmin()} ({times.min():.0f} s), the dearest {times.idxmax()} "
        f"({times.max():.0f} s). These data speak of one task, one model and {seeds} seeds; they say nothing about "
        f"other models, longer training or other hyper-parameters, and that {best} has the highest mean is no ranking."
    )


FEW = 4  # arms, up to which a verdict names every pair


def all_pairs(study: Study, seeds: int) -> str:
    """Which pairs of methods are told apart, with intervals."""
    pairs = differences(study)
    decided = pairs[pairs["at 95 %"] != TIE]
    scores = ", ".join(f"{row['method']} {row['held-out greedy']:.3f}" for _, row in comparison(study).iterrows())
    text = f"Final held-out greedy accuracy, mean over {seeds} seeds: {scores}. "
    if decided.empty:
        return text + (
            f"No pair of methods is told apart at 95 % by a paired interval over {seeds} seeds: on this task, at this "
            "budget, they tie. "
        )
    named = "; ".join(
        f"{r['at 95 %']} ({r['a']} − {r['b']} = {r['a − b']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}])"
        for _, r in decided.iterrows()
    )
    tied = len(pairs) - len(decided)
    return text + f"Told apart at 95 %: {named}. " + (f"The other {tied} of {len(pairs)} pairs tie. " if tied else "")


def all_against_best(study: Study) -> str:
    """Which methods tie with the best mean, and which are told apart from it."""
    table = league(study)
    best = table["method"][0]
    tied = table["method"][table["against the best"] == "tie"].tolist()
    below = [
        f"{row['method']} ({row['against the best']})"
        for _, row in table.iloc[1:].iterrows()
        if row["against the best"] != "tie"
    ]
    text = f"The best mean is {best}'s, {table['held-out greedy'][0]:.3f}. Not told apart from it at 95 %: "
    text += (", ".join(tied) or "none") + ". Below it: " + (", ".join(below) or "none") + ". "
    return text + (
        f"These are {len(table) - 1} comparisons, and their intervals are not widened for that number: of true ties, "
        "one in twenty would be told apart by chance. "
    )
