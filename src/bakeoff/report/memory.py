"""Memory by model, kind and phase, against what it earns: the frames and sentences of the memory page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bakeoff.attribution import KINDS, ROLES
from bakeoff.measure import TRAINING
from bakeoff.report.statistics import mean_interval, paired_difference, told_apart
from bakeoff.report.study import ACCURACY, Study
from bakeoff.report.tables import by_seed

GIGA = 10_000  # MB, from which on a figure is in GB


def ledger(study: Study) -> pd.DataFrame:
    """Every cell of every ledger: name, seed, phase, role, kind, mb. Of several followed updates the largest."""
    rows = study.metrics[study.metrics["metric"].str.fullmatch(r"memory/\w+/\w+_mb")]
    parts = rows["metric"].str.extract(rf"memory/(\w+)/(?:({'|'.join(ROLES)})_)?({'|'.join([*KINDS, 'remainder'])})_mb")
    frame = rows[["name", "seed", "value"]].assign(phase=parts[0], role=parts[1].fillna("data"), kind=parts[2])
    keys = ["name", "seed", "phase", "role", "kind"]
    return frame.groupby(keys, sort=False)["value"].max().rename("mb").reset_index()


def peaks(study: Study) -> pd.DataFrame:
    """The peak of every phase of training: name, seed, phase, mb; in the order of the phases."""
    names = {f"memory/{phase}_mb": phase for phase in TRAINING}
    rows = study.of(*names)
    frame = rows.assign(phase=rows["metric"].map(names)).groupby(["name", "seed", "phase"], sort=False)["value"].max()
    order = {phase: number for number, phase in enumerate(TRAINING)}
    table = frame.rename("mb").reset_index()
    return table.sort_values("phase", key=lambda phase: phase.map(order), kind="stable").reset_index(drop=True)


def largest_peaks(study: Study) -> pd.DataFrame:
    """A row an arm: the phase of its largest peak, that peak in MB (mean over seeds), and seeds."""
    means = peaks(study).groupby(["name", "phase"], sort=False)["mb"].agg(["mean", "count"]).reset_index()
    best = means.loc[means.groupby("name", sort=False)["mean"].idxmax()]
    table = best.rename(columns={"mean": "mb", "count": "seeds"}).set_index("name")
    return table.reindex([arm for arm in study.arms if arm in table.index]).reset_index()


def peaks_markdown(study: Study) -> str:
    """The largest peak of each arm as a Markdown table."""
    table = largest_peaks(study)
    rows = {
        "arm": "`" + table["name"] + "`",
        "largest peak": [f"{mb / 1000:,.1f} GB" if mb > GIGA else f"{mb:,.1f} MB" for mb in table["mb"]],
        "in": table["phase"].str.replace("_", " "),
    }
    return pd.DataFrame(rows).to_markdown(index=False) + "\n"


def at_peak(study: Study, by: str) -> pd.DataFrame:
    """What each arm's largest peak is made of, by `role` or `kind`: a row a part, a column an arm, in MB."""
    cells = ledger(study).merge(largest_peaks(study)[["name", "phase"]], on=["name", "phase"])
    sums = cells.groupby(["name", "seed", by])["mb"].sum().groupby(["name", by]).mean()
    table = sums.unstack("name").fillna(0)
    order = [part for part in (ROLES if by == "role" else [*KINDS, "remainder"]) if part in table.index]
    return table.loc[order, [arm for arm in study.arms if arm in table.columns]]


def prediction(study: Study) -> pd.DataFrame:
    """What was predicted for each phase that runs a model beside what was measured: a row an arm and phase."""
    rows = study.metrics[study.metrics["metric"].str.startswith("memory/predicted_")]
    phased = rows.assign(phase=rows["metric"].str.extract(r"predicted_(\w+)_mb")[0])
    predicted = phased.groupby(["name", "phase"])["value"].max().rename("predicted (MB)")
    measured = peaks(study).groupby(["name", "phase"])["mb"].max().rename("measured (MB)")
    table = pd.concat([measured, predicted], axis=1, join="inner").reset_index()
    table = table[~table["phase"].isin(["reward", "offload"])]  # there no model runs
    return table.assign(error=table["predicted (MB)"] / table["measured (MB)"] - 1)


def pareto(study: Study) -> pd.DataFrame:
    """A row an arm: largest peak, final accuracy with its 95 % interval, seeds, and whether it is on the front.

    On the front is whom no other arm beats in both means; intervals say how much of that is noise.
    """
    table = largest_peaks(study)[["name", "phase", "mb"]]
    accuracy = {name: mean_interval(by_seed(study, ACCURACY, name)) for name in table["name"]}
    table[["accuracy", "low", "high"]] = [accuracy[name] for name in table["name"]]
    table["seeds"] = [len(by_seed(study, ACCURACY, name)) for name in table["name"]]
    better = [
        ((table["mb"] < row["mb"]) & (table["accuracy"] >= row["accuracy"])).any()
        or ((table["mb"] <= row["mb"]) & (table["accuracy"] > row["accuracy"])).any()
        for _, row in table.iterrows()
    ]
    return table.assign(front=[not each for each in better])


def over(study: Study, key: str) -> pd.DataFrame:
    """Largest peak of each arm over a numeric parameter: arm, model, x, mb. The arm is what the sweep calls it."""
    values = study.params[study.params["key"] == key].set_index("run")["value"].astype(float)
    tags = study.runs.assign(x=study.runs["run"].map(values))
    choice = study.params[study.params["key"] == "choice/arm"].set_index("run")["value"]
    named = tags["run"].map(choice).fillna("none")
    tags["arm_name"] = named.where(named != "none", tags["algorithm"])
    table = largest_peaks(study).merge(tags[["name", "arm_name", "model", "x"]].drop_duplicates("name"), on="name")
    return table.rename(columns={"arm_name": "arm"})[["arm", "model", "x", "mb"]]


def crossing(study: Study, expensive: str, cheap: str) -> pd.DataFrame:
    """For each model: the smallest group at which `cheap` needs more than `expensive` with its smallest group.

    NaN where no group of the study does. In the study `memory_group` these are PPO's critic and GRPO's group.
    """
    table = over(study, "batch.group_size")
    rows = []
    for model, own in table.groupby("model", sort=False):
        if not {expensive, cheap} <= set(own["arm"]):
            continue  # of a sweep that is not finished
        bar = own[own["arm"] == expensive].sort_values("x")["mb"].iloc[0]
        beyond = own[(own["arm"] == cheap) & (own["mb"] > bar)]["x"]
        rows.append({"model": model, "bar (MB)": bar, "group": beyond.min()})
    return pd.DataFrame(rows)


def critic_verdict(study: Study, without: str = "critic_none", separate: str = "critic_separate") -> str:
    """What dropping the critic saves and what it costs, in a sentence with figures."""
    peak = {str(row["name"]): float(row["mb"]) for _, row in largest_peaks(study).iterrows()}
    saved = peak[separate] - peak[without]
    a, b = by_seed(study, ACCURACY, without), by_seed(study, ACCURACY, separate)
    mean, low, high = difference = paired_difference(a, b)
    return (
        f"Dropping PPO's separate critic (GRPO in its place) saves {saved:.1f} of {peak[separate]:.1f} MB, "
        f"{saved / peak[separate]:.0%} of the largest peak, and changes held-out greedy accuracy by "
        f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] over {len(a)} seeds: {told_apart(difference, without, separate)}."
    )


def pairs_verdict(study: Study, without: str = "grpo", having: str = "ppo") -> str:
    """What dropping the critic saves and costs at each setting that a study varies, in a sentence with figures."""
    peak = {str(row["name"]): float(row["mb"]) for _, row in largest_peaks(study).iterrows()}
    parts = []
    for name in study.arms:
        partner = having + name.removeprefix(without)
        if name.split()[0] != without or partner not in peak:
            continue
        mean, low, high = paired_difference(by_seed(study, ACCURACY, name), by_seed(study, ACCURACY, partner))
        setting = name.removeprefix(without).strip() or study.name
        parts.append(
            f"with {setting} {1 - peak[name] / peak[partner]:.0%} of {peak[partner]:.1f} MB, for an accuracy that is "
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
    return "GRPO in the place of PPO, without a critic, saves of the largest peak: " + "; ".join(parts) + "."


def size_verdict(study: Study, without: str = "critic_none", separate: str = "critic_separate") -> str:
    """What dropping the critic would save from the smallest to the largest model, in a sentence with figures."""
    table = sizes(study)
    shares = 1 - table.loc[without] / table.loc[separate]
    shown = ", ".join(f"{share:.0%} with {model}" for model, share in zip(table.columns, list(shares), strict=True))
    return f"Predicted, dropping PPO's separate critic saves of the largest peak: {shown}."


def group_verdict(study: Study) -> str:
    """From which group on GRPO needs more than PPO, in a sentence with figures."""
    parts = []
    smallest = int(over(study, "batch.group_size")["x"].min())
    for _, row in crossing(study, "critic_separate", "critic_none").iterrows():
        group = float(row["group"])
        tried = "at no size that was tried" if np.isnan(group) else f"from {group:.0f} completions a prompt on"
        parts.append(f"{tried} with {row['model']}")
    if not parts:
        return "The study of the group has not finished."
    return (
        f"Predicted for eight prompts of 512 tokens and answers of 512, GRPO needs more memory than PPO with "
        f"{smallest} completions a prompt {', and '.join(parts)}: the group's cache takes what the critic held."
    )


def actor_weights(study: Study) -> pd.Series:
    """MB of the actor's weights by model, the smallest first."""
    rows = study.of("memory/weights_actor_mb").merge(study.runs[["run", "model"]])
    return rows.groupby("model")["value"].max().sort_values()


def sizes(study: Study) -> pd.DataFrame:
    """Largest peak in GB of each arm (row) with each model (column), the smallest model first."""
    table = over(study, "batch.group_size")
    wide = table.pivot_table(index="arm", columns="model", values="mb", sort=False) / 1000
    return wide[actor_weights(study).index]
